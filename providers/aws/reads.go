package aws

import (
	"maps"
	"slices"
	"strings"
)

// readsVersion names the table below: it rises with every change.
const readsVersion = "aws-reads-1"

// reads are the actions that are known only to read or list, by service. What is not
// here writes. What reads secrets is not here either: secretsmanager:GetSecretValue,
// ssm:GetParameter, kms:Decrypt and their like are asked for as if they wrote.
var reads = map[string][]string{
	"athena":         {"BatchGetQueryExecution", "GetQueryExecution", "GetQueryResults", "GetWorkGroup", "ListQueryExecutions"},
	"cloudformation": {"DescribeStackEvents", "DescribeStackResources", "DescribeStacks", "GetTemplate", "ListStackResources"},
	"cloudtrail":     {"DescribeTrails", "GetTrailStatus", "ListTrails", "LookupEvents"},
	"cloudwatch":     {"DescribeAlarms", "GetDashboard", "GetMetricData", "GetMetricStatistics", "ListMetrics"},
	"dynamodb":       {"BatchGetItem", "DescribeTable", "DescribeTimeToLive", "GetItem", "ListTables", "Query", "Scan"},
	"ec2": {"DescribeAvailabilityZones", "DescribeImages", "DescribeInstanceStatus", "DescribeInstances", "DescribeRegions",
		"DescribeSecurityGroups", "DescribeSnapshots", "DescribeSubnets", "DescribeTags", "DescribeVolumes", "DescribeVpcs"},
	"ecr":     {"BatchGetImage", "DescribeImages", "DescribeRepositories", "ListImages"},
	"ecs":     {"DescribeClusters", "DescribeServices", "DescribeTasks", "ListClusters", "ListServices", "ListTasks"},
	"eks":     {"DescribeCluster", "DescribeNodegroup", "ListClusters", "ListNodegroups"},
	"glue":    {"GetDatabase", "GetDatabases", "GetPartition", "GetPartitions", "GetTable", "GetTables"},
	"iam":     {"GetPolicy", "GetPolicyVersion", "GetRole", "GetRolePolicy", "ListAttachedRolePolicies", "ListRolePolicies", "ListRoles", "ListUsers"},
	"kinesis": {"DescribeStream", "DescribeStreamSummary", "GetRecords", "GetShardIterator", "ListShards", "ListStreams"},
	"lambda":  {"GetFunctionConfiguration", "GetPolicy", "ListFunctions", "ListVersionsByFunction"},
	"logs":    {"DescribeLogGroups", "DescribeLogStreams", "FilterLogEvents", "GetLogEvents", "GetQueryResults"},
	"rds":     {"DescribeDBClusters", "DescribeDBInstances", "DescribeDBSnapshots", "DescribeEvents", "ListTagsForResource"},
	"route53": {"GetHostedZone", "ListHostedZones", "ListResourceRecordSets"},
	"s3": {"GetBucketLocation", "GetBucketPolicy", "GetBucketTagging", "GetBucketVersioning", "GetObjectAcl", "GetObjectAttributes",
		"GetObjectTagging", "GetObjectVersion", "ListAllMyBuckets", "ListBucketMultipartUploads", "ListBucketVersions", "ListMultipartUploadParts"},
	"sns":    {"GetTopicAttributes", "ListSubscriptionsByTopic", "ListTopics"},
	"sqs":    {"GetQueueAttributes", "GetQueueUrl", "ListQueues"},
	"states": {"DescribeExecution", "DescribeStateMachine", "GetExecutionHistory", "ListExecutions", "ListStateMachines"},
}

// resourceless are the actions that know no resource but "*".
var resourceless = map[string]bool{
	"cloudtrail:DescribeTrails": true, "cloudtrail:ListTrails": true, "cloudtrail:LookupEvents": true,
	"cloudwatch:GetMetricData": true, "cloudwatch:GetMetricStatistics": true, "cloudwatch:ListMetrics": true,
	"dynamodb:ListTables":           true,
	"ec2:DescribeAvailabilityZones": true, "ec2:DescribeImages": true, "ec2:DescribeInstanceStatus": true, "ec2:DescribeInstances": true,
	"ec2:DescribeRegions": true, "ec2:DescribeSecurityGroups": true, "ec2:DescribeSnapshots": true, "ec2:DescribeSubnets": true,
	"ec2:DescribeTags": true, "ec2:DescribeVolumes": true, "ec2:DescribeVpcs": true,
	"ecs:ListClusters": true, "eks:ListClusters": true, "kinesis:ListStreams": true, "lambda:ListFunctions": true,
	"route53:ListHostedZones": true, "s3:ListAllMyBuckets": true, "sns:ListTopics": true, "sqs:ListQueues": true,
	"states:ListStateMachines": true,
}

// readActions are the actions of the table, sorted.
func readActions() []string {
	var out []string
	for _, service := range slices.Sorted(maps.Keys(reads)) {
		for _, name := range reads[service] {
			out = append(out, service+":"+name)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}

// everywhere reports whether an action knows no resource but "*".
func everywhere(action string) bool { return resourceless[action] }
