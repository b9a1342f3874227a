package kubernetes

import "strings"

// Names as Kubernetes has them. Nothing else gets into a path or an object.

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// of reports whether a text has 1 to max characters, all of them in a set.
func of(s string, most int, set string) bool {
	return s != "" && len(s) <= most && onlyOf(s, set)
}

func onlyOf(s, set string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(set, r) })
}

// edges reports whether a text begins and ends in a set.
func edges(s, set string) bool {
	return s != "" && strings.IndexByte(set, s[0]) >= 0 && strings.IndexByte(set, s[len(s)-1]) >= 0
}

// dnsLabel is the form of a namespace's name (RFC 1123).
func dnsLabel(s string) bool { return of(s, 63, lower+digits+"-") && edges(s, lower+digits) }

// dnsName is the form of most other names.
func dnsName(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if !dnsLabel(part) {
			return false
		}
	}
	return len(s) <= 253
}

func labelValue(s string) bool {
	return of(s, 63, lower+upper+digits+"-_.") && edges(s, lower+upper+digits)
}

func profileName(s string) bool { return of(s, 63, lower+digits+"-_") && edges(s, lower+digits) }

// leaseID is the form of the broker's leases: a part of a name.
func leaseID(s string) bool { return len(s) >= 16 && of(s, 40, lower+digits) }

// verbName is the form of a verb: a word, or "*".
func verbName(s string) bool { return s == star || of(s, 63, lower) }

// resourceName is the form of a resource, which may have a sub-resource, and "*" in
// place of either.
func resourceName(s string) bool {
	resource, sub, below := strings.Cut(s, "/")
	if s == star {
		return true
	}
	return (resource == star && below || dnsName(resource)) && (!below || of(sub, 253, lower+digits+"-/"))
}

// objectName is the form of an object's name: a segment of a path.
func objectName(s string) bool {
	return s == star || s != "." && s != ".." && of(s, 253, lower+upper+digits+"-_.:@")
}

const star = "*"
