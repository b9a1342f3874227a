package github

// permissionsVersion is the version of GitHub's description that the tables are of.
const permissionsVersion = "REST API 2022-11-28, 55 permissions"

// repositoryPermissions are those that a token has on its repositories, each with the
// levels that there are.
var repositoryPermissions = map[string][]string{
	"actions":                      {"read", "write"},
	"administration":               {"read", "write"},
	"artifact_metadata":            {"read", "write"},
	"attestations":                 {"read", "write"},
	"checks":                       {"read", "write"},
	"code_quality":                 {"read", "write"},
	"codespaces":                   {"read", "write"},
	"contents":                     {"read", "write"},
	"dependabot_secrets":           {"read", "write"},
	"deployments":                  {"read", "write"},
	"discussions":                  {"read", "write"},
	"environments":                 {"read", "write"},
	"issues":                       {"read", "write"},
	"merge_queues":                 {"read", "write"},
	"metadata":                     {"read", "write"},
	"packages":                     {"read", "write"},
	"pages":                        {"read", "write"},
	"pull_requests":                {"read", "write"},
	"repository_custom_properties": {"read", "write"},
	"repository_hooks":             {"read", "write"},
	"repository_projects":          {"read", "write", "admin"},
	"secret_scanning_alerts":       {"read", "write"},
	"secrets":                      {"read", "write"},
	"security_events":              {"read", "write"},
	"single_file":                  {"read", "write"},
	"statuses":                     {"read", "write"},
	"vulnerability_alerts":         {"read", "write"},
	"workflows":                    {"write"},
}

// accountPermissions are those on an owner or a user: no repository bounds them.
var accountPermissions = map[string][]string{
	"custom_properties_for_organizations":            {"read", "write"},
	"members":                                        {"read", "write"},
	"organization_administration":                    {"read", "write"},
	"organization_custom_roles":                      {"read", "write"},
	"organization_custom_org_roles":                  {"read", "write"},
	"organization_custom_properties":                 {"read", "write", "admin"},
	"organization_copilot_seat_management":           {"read", "write"},
	"organization_copilot_agent_settings":            {"read", "write"},
	"organization_announcement_banners":              {"read", "write"},
	"organization_events":                            {"read"},
	"organization_hooks":                             {"read", "write"},
	"organization_personal_access_tokens":            {"read", "write"},
	"organization_personal_access_token_requests":    {"read", "write"},
	"organization_plan":                              {"read"},
	"organization_projects":                          {"read", "write", "admin"},
	"organization_packages":                          {"read", "write"},
	"organization_secrets":                           {"read", "write"},
	"organization_self_hosted_runners":               {"read", "write"},
	"organization_user_blocking":                     {"read", "write"},
	"email_addresses":                                {"read", "write"},
	"followers":                                      {"read", "write"},
	"git_ssh_keys":                                   {"read", "write"},
	"gpg_keys":                                       {"read", "write"},
	"interaction_limits":                             {"read", "write"},
	"profile":                                        {"write"},
	"starring":                                       {"read", "write"},
	"enterprise_custom_properties_for_organizations": {"read", "write", "admin"},
}

// roleTable is the version of [entitled].
const roleTable = "roles 1"

// What a role on a repository entitles to, beyond what the one before it does: less than
// GitHub's own pages let people do, where the two do not match.
var (
	readRole = map[string]string{
		"actions": "read", "attestations": "read", "checks": "read", "contents": "read", "deployments": "read", "discussions": "read",
		"issues": "read", "metadata": "read", "packages": "read", "pages": "read", "pull_requests": "read", "repository_projects": "read",
		"statuses": "read",
	}
	writeRole = map[string]string{
		"actions": "write", "artifact_metadata": "write", "attestations": "write", "checks": "write", "contents": "write", "deployments": "write",
		"discussions": "write", "issues": "write", "merge_queues": "read", "packages": "write", "pull_requests": "write",
		"repository_custom_properties": "read", "repository_projects": "write", "code_quality": "read", "security_events": "read", "statuses": "write",
		"vulnerability_alerts": "read", "workflows": "write",
	}
)

// entitled returns the permissions that a collaborator's permission (none, read, write or
// admin) entitles to on a repository.
func entitled(permission string) map[string]any {
	out := make(map[string]any)
	switch permission {
	case "admin":
		for key, levels := range repositoryPermissions {
			out[key] = levels[len(levels)-1]
		}
	case "write":
		for key, level := range readRole {
			out[key] = level
		}
		for key, level := range writeRole {
			out[key] = level
		}
	case "read":
		for key, level := range readRole {
			out[key] = level
		}
	}
	return out
}
