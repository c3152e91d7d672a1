package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What the README tells people to write is valid, without a warning.
func TestTheConfigurationsOfTheReadmeAreValid(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of YAML, want a first configuration and what takes the place of its acme", len(blocks))
	}
	first := blocks[0][1]
	acme := regexp.MustCompile(`(?m)^acme: .*\n`)
	for name, data := range map[string]string{
		"Cloudflare": first,
		"Route 53":   strings.Replace(first, "dns: cloudflare", "dns: route53", 1),
		"own server": acme.ReplaceAllString(first, blocks[1][1]),
		"staging":    strings.Replace(first, "acme: {", "acme: {directory: letsencrypt-staging, ", 1),
		"bucket":     strings.Replace(first, "file:///var/lib/edge", "s3://BUCKET/PREFIX", 1),
	} {
		cfg, err := Parse(name, []byte(data))
		if err != nil || len(cfg.Warnings) > 0 {
			t.Errorf("%v\n%s", err, data)
		}
	}
}
