package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecretIsReadFromWhereItIsKept(t *testing.T) {
	t.Setenv("EDGE_TEST_TOKEN", "from the environment")
	path := write(t, "token", "from a file\n\n")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
	for ref, want := range map[string]string{
		"env:EDGE_TEST_TOKEN":                    "from the environment",
		"file:" + path:                           "from a file\n", // one newline is the editor's, two are the secret's
		"credential:token":                       "from a file\n",
		"file:" + write(t, "dos", "hunter2\r\n"): "hunter2",
	} {
		got, err := Secret{ref}.Load()
		if got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", ref, got, err, want)
		}
	}
}

func TestSecretThatIsAbsentSaysWhatToDo(t *testing.T) {
	t.Setenv("EDGE_TEST_EMPTY", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	dir := t.TempDir()
	for ref, want := range map[string]string{
		"env:EDGE_TEST_EMPTY":                "environment variable EDGE_TEST_EMPTY is not set or empty (set it where edge is started)",
		"file:" + filepath.Join(dir, "gone"): "no such file or directory (check the path and that the user edge runs as may read it)",
		"file:" + dir:                        "not a regular file (",
		"file:" + write(t, "empty", "\n"):    "the file is empty (",
		"file:" + write(t, "large", strings.Repeat("x", maxSecret+1)): "larger than 64 KiB (",
		"credential:tsig": "$CREDENTIALS_DIRECTORY is not set (add LoadCredential=tsig:/path to the systemd unit)",
		"":                "no reference (want env:NAME, file:/path or credential:NAME)",
		"hunter2":         "no reference (want env:NAME, file:/path or credential:NAME)",
	} {
		got, err := Secret{ref}.Load()
		if err == nil || got != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %q, %v, want an error with %q", ref, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error shows the secret: %v", ref, err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if _, err := (Secret{"credential:tsig"}).Load(); err == nil || !strings.Contains(err.Error(), "LoadCredential=tsig:") {
		t.Errorf("got %v, want a hint at LoadCredential", err)
	}
}

func TestSecretNeverShowsMoreThanItsReference(t *testing.T) {
	show := func(s Secret) []string {
		encoded, err := json.Marshal(map[string]Secret{"token": s})
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("provider", slog.Any("token", s), slog.Any("whole", Cloudflare{s}))
		return []string{
			fmt.Sprintf("%v", s), fmt.Sprintf("%+v", Cloudflare{s}), fmt.Sprintf("%#v", s), s.String(), string(encoded), log.String(),
		}
	}
	for i, text := range show(Secret{"env:TOKEN"}) {
		if !strings.Contains(text, "env:TOKEN") {
			t.Errorf("%d: %q does not show the reference", i, text)
		}
	}
	for i, text := range show(Secret{"hunter2"}) {
		if strings.Contains(text, "hunter2") {
			t.Errorf("%d: %q shows what is no reference", i, text)
		}
	}
}

func TestNoMessageRepeatsAnInlineSecret(t *testing.T) {
	for _, path := range glob(t, "testdata/bad/secret*.yaml") {
		data, _ := fixture(t, path)
		data, _, _ = bytes.Cut(data, []byte(wantLine))
		if !bytes.Contains(data, []byte("hunter2")) {
			t.Errorf("%s has no secrets", path)
		}
		_, err := Parse("f", data)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want problems without the secret", path, err)
		}
	}
}
