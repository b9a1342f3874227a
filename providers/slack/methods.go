package slack

import (
	"maps"
	"slices"
)

// tableVersion is that of the table of methods: it rises when a method comes, goes, or
// becomes a read.
const tableVersion = "version 1 of November 2026"

// method is what is known of a method of the Web API.
type method struct {
	reads bool
	// channel is the argument that names the channel; empty: it names none.
	channel string
	// lists says that it has an argument types, which asks for private channels.
	lists bool
}

// methods are those that grants can have. Not among them: what is about tokens and apps
// (auth.revoke ends the bot in all its channels, oauth, apps, admin), what has several
// channels or none where it needs one (conversations.open, files.upload, chat.unfurl), and
// what reads across channels whatever it is asked for (search, files, reactions.list).
var methods = map[string]method{
	"auth.test":                   {reads: true},
	"bookmarks.add":               {channel: "channel_id"},
	"bookmarks.edit":              {channel: "channel_id"},
	"bookmarks.list":              {reads: true, channel: "channel_id"},
	"bookmarks.remove":            {channel: "channel_id"},
	"bots.info":                   {reads: true},
	"chat.delete":                 {channel: "channel"},
	"chat.deleteScheduledMessage": {channel: "channel"},
	"chat.getPermalink":           {reads: true, channel: "channel"},
	"chat.meMessage":              {channel: "channel"},
	"chat.postEphemeral":          {channel: "channel"},
	"chat.postMessage":            {channel: "channel"},
	"chat.scheduleMessage":        {channel: "channel"},
	"chat.scheduledMessages.list": {channel: "channel"}, // takes the scope that writes
	"chat.update":                 {channel: "channel"},
	"conversations.archive":       {channel: "channel"},
	"conversations.create":        {},
	"conversations.history":       {reads: true, channel: "channel"},
	"conversations.info":          {reads: true, channel: "channel"},
	"conversations.invite":        {channel: "channel"},
	"conversations.join":          {channel: "channel"},
	"conversations.kick":          {channel: "channel"},
	"conversations.leave":         {channel: "channel"},
	"conversations.list":          {reads: true, lists: true},
	"conversations.mark":          {channel: "channel"},
	"conversations.members":       {reads: true, channel: "channel"},
	"conversations.rename":        {channel: "channel"},
	"conversations.replies":       {reads: true, channel: "channel"},
	"conversations.setPurpose":    {channel: "channel"},
	"conversations.setTopic":      {channel: "channel"},
	"conversations.unarchive":     {channel: "channel"},
	"emoji.list":                  {reads: true},
	"pins.add":                    {channel: "channel"},
	"pins.list":                   {reads: true, channel: "channel"},
	"pins.remove":                 {channel: "channel"},
	"reactions.add":               {channel: "channel"},
	"reactions.get":               {reads: true, channel: "channel"},
	"reactions.remove":            {channel: "channel"},
	"team.info":                   {reads: true},
	"usergroups.list":             {reads: true},
	"usergroups.users.list":       {reads: true},
	"users.conversations":         {reads: true, lists: true},
	"users.getPresence":           {reads: true},
	"users.info":                  {reads: true},
	"users.list":                  {reads: true},
	"users.lookupByEmail":         {reads: true},
	"users.profile.get":           {reads: true},
}

// methodNames are the names of methods, sorted: all of them, or those that only read.
func methodNames(reads bool) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(methods)) {
		if methods[name].reads || !reads {
			out = append(out, name)
		}
	}
	return out
}
