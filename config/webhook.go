package config

import (
	"errors"
	"net/url"
)

// WebhookURL reads the secret that says where certificate warnings are posted
// to; "" when nowhere. It takes https, and http on a loopback address only: the
// path or query of such a URL is what gives access. The error does not show it.
func (c *Config) WebhookURL() (string, error) {
	if c.Webhook.Ref == "" {
		return "", nil
	}
	text, err := c.Webhook.Load()
	if err != nil {
		return "", err
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" ||
		u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return "", errors.New("observability.webhook: " + c.Webhook.String() + " holds no URL to post to (https://host/path without user; http:// only on a loopback address)")
	}
	return text, nil
}
