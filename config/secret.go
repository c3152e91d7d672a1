package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// maxSecret bounds what Load reads: keys, tokens and certificates are small.
const maxSecret = 64 << 10

// The prefixes of a reference.
const (
	fromEnv        = "env:"
	fromFile       = "file:"
	fromCredential = "credential:" //nolint:gosec // G101: a prefix, no credential
)

// Secret says where a secret is kept. It never holds the secret itself, so it
// may be printed, logged and encoded; a Ref that is none of the three kinds is
// shown as [redacted].
type Secret struct {
	Ref string // "env:NAME", "file:/path", or "credential:NAME" in $CREDENTIALS_DIRECTORY (systemd.exec(5))
}

// Load reads the secret now, without one trailing newline. It is an error when
// the secret is absent, empty or larger than 64 KiB. Errors name the reference
// and a remedy, never the content.
func (s Secret) Load() (string, error) {
	switch kind, name := splitRef(s.Ref); kind {
	case fromEnv:
		value := os.Getenv(name)
		if value == "" {
			return "", fmt.Errorf("load secret %s: environment variable %s is not set or empty (set it where edge is started)", s, name)
		}
		return value, nil
	case fromFile:
		return s.read(name, "check the path and that the user edge runs as may read it")
	case fromCredential:
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return "", fmt.Errorf("load secret %s: $CREDENTIALS_DIRECTORY is not set (add LoadCredential=%s:/path to the systemd unit)", s, name)
		}
		return s.read(filepath.Join(dir, name), "add LoadCredential="+name+":/path to the systemd unit")
	default:
		return "", fmt.Errorf("load secret: no reference (want env:NAME, file:/path or credential:NAME)")
	}
}

// read returns the content of a small regular file. A pipe would block forever.
func (s Secret) read(path, hint string) (string, error) {
	content, err := readRegular(path)
	if err != nil {
		return "", fmt.Errorf("load secret %s: %w (%s)", s, err, hint)
	}
	content = strings.TrimSuffix(strings.TrimSuffix(content, "\n"), "\r")
	if content == "" {
		return "", fmt.Errorf("load secret %s: the file is empty (%s)", s, hint)
	}
	return content, nil
}

func readRegular(path string) (string, error) {
	info, err := os.Stat(path) //nolint:gosec // G703: as below
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	f, err := os.Open(path) //nolint:gosec // the operator's own configuration names the file
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(content) > maxSecret {
		return "", fmt.Errorf("larger than %d KiB", maxSecret>>10)
	}
	return string(content), nil
}

// String returns the reference.
func (s Secret) String() string {
	if kind, _ := splitRef(s.Ref); kind == "" && s.Ref != "" {
		return "[redacted]"
	}
	return s.Ref
}

// GoString returns the reference; %#v must not show more than %v.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// LogValue returns the reference.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText returns the reference. JSON uses it too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// splitRef splits a reference into one of the prefixes and a name. The prefix
// is empty when ref is not a well-formed reference, hence perhaps a secret.
func splitRef(ref string) (kind, name string) {
	for _, kind := range []string{fromEnv, fromFile, fromCredential} {
		name, ok := strings.CutPrefix(ref, kind)
		switch {
		case !ok:
		case name == "", strings.ContainsAny(name, "\x00\n"):
			return "", ""
		case kind == fromEnv && strings.ContainsAny(name, "= "):
			return "", ""
		case kind == fromCredential && (strings.ContainsAny(name, "/ ") || strings.HasPrefix(name, ".")):
			return "", ""
		default:
			return kind, name
		}
	}
	return "", ""
}
