package config

import (
	"strings"
	"testing"
)

func TestTheWebhookIsHTTPSOrOnThisMachine(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://hooks.example.com/T0/hunter2?x=1": true, "http://127.0.0.1:8080/hook": true, "http://[::1]/hook": true, "http://localhost/": true,
		"http://hooks.example.com/hunter2": false, "https://hunter2@hooks.example.com/": false, "hunter2": false, "https:///hunter2": false,
		"ftp://127.0.0.1/hunter2": false, "https://h/#hunter2": false, "http://h\x7f/hunter2": false,
	} {
		t.Setenv("EDGE_HOOK", text)
		got, err := (&Config{Webhook: Secret{"env:EDGE_HOOK"}}).WebhookURL()
		if ok != (err == nil) || ok && got != text {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "env:EDGE_HOOK")) {
			t.Errorf("the error shows the secret, or does not say which one: %v", err)
		}
	}
}

func TestWithoutAWebhookThereIsNothingToRead(t *testing.T) {
	if got, err := new(Config).WebhookURL(); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := (&Config{Webhook: Secret{"env:EDGE_NO_SUCH_HOOK"}}).WebhookURL(); err == nil {
		t.Error("a secret that is absent is no error")
	}
}
