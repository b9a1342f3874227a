package google

import (
	"slices"
	"strings"
)

// scopePrefix is left out of scopes' names in grants.
const scopePrefix = "https://www.googleapis.com/auth/"

// others are the scopes that do not begin with it, by their names in grants.
var others = map[string]string{"openid": "openid", "mail.google.com": "https://mail.google.com/"}

// aliases are other spellings of scopes, which Google takes and answers with.
var aliases = map[string]string{"email": "userinfo.email", "profile": "userinfo.profile"}

// full returns a scope as Google has it.
func full(name string) (string, bool) {
	if s, ok := others[name]; ok {
		return s, true
	}
	if name == "" || len(name) > 100 || aliases[name] != "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return "", false
	}
	return scopePrefix + name, true
}

// short returns a scope's name in grants. One that has none keeps its text, so that it
// is in no grant's way and is seen where it was not asked for.
func short(scope string) string {
	if name, ok := aliases[scope]; ok {
		return name
	}
	for name, s := range others {
		if s == scope {
			return name
		}
	}
	if name, ok := strings.CutPrefix(scope, scopePrefix); ok {
		if back, ok := full(name); ok && back == scope {
			return name
		}
	}
	return scope
}

// shorts returns the names of scopes in a list with blanks between them.
func shorts(list string) []any {
	var out []any
	for _, s := range strings.Fields(list) {
		if name := short(s); !slices.Contains(out, any(name)) {
			out = append(out, name)
		}
	}
	return out
}

// readsVersion names the table of reads, and the descriptions that it is held against.
const readsVersion = "2026-11, by the discovery documents of google.golang.org/api v0.311.0"

// reads are the scopes with which nothing can be changed. To be called readonly is not
// enough: youtube.readonly edits groups, contacts.other.readonly copies contacts,
// analytics.readonly makes exports, userinfo.email runs scripts, and none of them is here.
var reads = []string{
	"openid", "userinfo.profile",
	"calendar.acls.readonly", "calendar.calendarlist.readonly", "calendar.calendars.readonly", "calendar.events.readonly",
	"calendar.freebusy", "calendar.readonly", "calendar.settings.readonly",
	"chat.memberships.readonly", "chat.messages.readonly", "chat.messages.reactions.readonly", "chat.spaces.readonly",
	"classroom.announcements.readonly", "classroom.courses.readonly", "classroom.rosters.readonly", "classroom.topics.readonly",
	"cloud-identity.devices.readonly", "cloud-identity.groups.readonly", "cloud-identity.policies.readonly",
	"contacts.readonly", "directory.readonly", "documents.readonly",
	"drive.activity.readonly", "drive.labels.readonly", "drive.meet.readonly", "drive.metadata.readonly", "drive.readonly",
	"forms.body.readonly", "forms.responses.readonly", "gmail.metadata", "gmail.readonly", "keep.readonly",
	"admin.directory.group.readonly", "admin.directory.orgunit.readonly", "admin.directory.user.readonly",
	"admin.reports.audit.readonly", "admin.reports.usage.readonly",
	"logging.read", "meetings.space.readonly", "monitoring.read",
	"presentations.readonly", "spreadsheets.readonly", "tasks.readonly", "webmasters.readonly",
}

// implied are scopes with those directly below them: whatever can be done with one that
// is below can be done with the one above, method by method of the discovery documents.
var implied = map[string][]string{
	"calendar":        {"calendar.acls.readonly", "calendar.events", "calendar.readonly"},
	"calendar.events": {"calendar.events.readonly"},
	"calendar.readonly": {
		"calendar.calendarlist.readonly", "calendar.calendars.readonly", "calendar.events.readonly", "calendar.freebusy", "calendar.settings.readonly",
	},
	"contacts":       {"contacts.readonly"},
	"documents":      {"documents.readonly"},
	"drive":          {"documents", "drive.metadata", "drive.readonly", "presentations", "spreadsheets"},
	"drive.metadata": {"drive.metadata.readonly"},
	"drive.readonly": {"documents.readonly", "drive.metadata.readonly", "presentations.readonly", "spreadsheets.readonly"},
	"gmail.compose":  {"gmail.send"},
	"gmail.modify":   {"gmail.compose", "gmail.insert", "gmail.labels", "gmail.readonly"},
	"gmail.readonly": {"gmail.metadata"},

	"mail.google.com": {"gmail.modify"},
	"presentations":   {"presentations.readonly"},
	"spreadsheets":    {"spreadsheets.readonly"},
	"tasks":           {"tasks.readonly"},
}
