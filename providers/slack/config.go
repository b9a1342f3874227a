package slack

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Config is what the configuration says of one app in one workspace.
type Config struct {
	// Team is the id of the workspace, T...
	Team string `yaml:"team" check:"required"`
	// BotToken is a reference to the bot token of an app without token rotation.
	BotToken string `yaml:"bot_token,omitempty" check:"reference"`
	// RefreshToken is a reference to the refresh token of the bot, for an app with token
	// rotation, with ClientID and a reference to the ClientSecret of the app. It is used
	// once.
	RefreshToken string `yaml:"refresh_token,omitempty" check:"reference"`
	ClientID     string `yaml:"client_id,omitempty"`
	ClientSecret string `yaml:"client_secret,omitempty" check:"reference"`
	// PrivateChannels lets grants have private channels and direct messages. Slack is not
	// asked whether the subject may see them: the mapping has to know.
	PrivateChannels bool `yaml:"private_channels,omitempty"`
	// URL is where Slack is. Absent: https://slack.com.
	URL string `yaml:"url,omitempty"`
}

// Check says what is wrong with the settings.
func (c *Config) Check() error {
	if c.URL == "" {
		c.URL = "https://slack.com"
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || c.URL != u.Scheme+"://"+u.Host || strings.ToLower(u.Host) != u.Host:
		return errors.New("url: an address without path is needed")
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		return errors.New("url: plain HTTP is for loopback addresses")
	case !isTeam(c.Team):
		return fmt.Errorf("team: %q is no id of a workspace", c.Team)
	case (c.BotToken == "") == (c.RefreshToken == ""):
		return errors.New("bot_token or refresh_token: one of the two is needed")
	case c.RefreshToken != "" && (c.ClientID == "" || c.ClientSecret == ""):
		return errors.New("refresh_token goes with client_id and client_secret")
	case c.RefreshToken == "" && (c.ClientID != "" || c.ClientSecret != ""):
		return errors.New("client_id and client_secret go with refresh_token")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// isTeam reports whether a text is the id of a workspace.
func isTeam(s string) bool { return identifier(s, "T") }

// isChannel reports whether a text is the id of a channel, or of a conversation.
func isChannel(s string) bool { return identifier(s, "CGD") }

func identifier(s, first string) bool {
	return len(s) >= 2 && len(s) <= 32 && strings.IndexByte(first, s[0]) >= 0 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z')
	})
}
