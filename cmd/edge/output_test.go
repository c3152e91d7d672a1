package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"edge/admin"
	"edge/config"
)

func TestAnUnreadableConfigurationIsToldWithTheSocketThatWasTried(t *testing.T) {
	if _, err := os.Stat(config.DefaultSocket); err == nil {
		t.Skip("an edge runs on this machine")
	}
	g := &globals{config: "none.yaml"}
	_, err := g.status(t.Context())
	if got := exitCode(action(func(*cobra.Command, []string) error { return err })(nil, nil)); got != exitUnreachable {
		t.Errorf("exit code %d, want %d", got, exitUnreachable)
	}
	first, second, _ := strings.Cut(message(&cobra.Command{Use: "status"}, err), "\n")
	if !strings.HasPrefix(first, "edge: control socket unreachable: "+config.DefaultSocket) || !strings.HasPrefix(second, "none.yaml: cannot read") {
		t.Errorf("message\n%s\n%s", first, second)
	}
}

func TestExitCodes(t *testing.T) {
	problems := config.Problems{{File: "routes.yaml", Pos: config.Pos{Line: 3, Column: 5}, Path: "a", Message: "m", Hint: "h"}}
	for _, c := range []struct {
		err  error
		want int
	}{
		{problems, exitConfig},
		{fmt.Errorf("wrapped: %w", admin.ErrUnreachable), exitUnreachable},
		{invalid(errors.New("x")), exitConfig},
		{errors.New("x"), exitFailure},
	} {
		if got := exitCode(action(func(*cobra.Command, []string) error { return c.err })(nil, nil)); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
	if got := exitCode(errors.New("unknown flag: --x")); got != exitUsage {
		t.Errorf("what cobra says itself: exit code %d, want %d", got, exitUsage)
	}
	if got, want := message(&cobra.Command{Use: "run"}, invalid(problems)), "routes.yaml:3:5: a: m (h)"; got != want {
		t.Errorf("message %q, want %q: editors look for the file at the start", got, want)
	}
}

func TestSpanShowsWhatMatters(t *testing.T) {
	for d, want := range map[time.Duration]string{
		90 * time.Millisecond:                       "0s",
		42*time.Second + time.Millisecond:           "42s",
		3*time.Hour + 7*time.Minute + 9*time.Second: "3h7m",
		89*24*time.Hour + 5*time.Hour:               "89d",
		-2 * time.Minute:                            "-2m0s",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestTheLogChangesItsFormatWithAReload(t *testing.T) {
	var out bytes.Buffer
	log := newLog(&out, config.Log{Format: "text"})
	child := log.With(slog.String("part", "tls")).WithGroup("g")
	child.Info("one", slog.Int("n", 1))
	log.format.json.Store(true)
	child.Info("two", slog.Int("n", 2))
	first, second, _ := strings.Cut(out.String(), "\n")
	if !strings.Contains(first, "msg=one part=tls g.n=1") {
		t.Errorf("text line %q", first)
	}
	var line struct {
		Msg, Part string
		G         struct{ N int }
	}
	if err := json.Unmarshal([]byte(second), &line); err != nil || line.Msg != "two" || line.Part != "tls" || line.G.N != 2 {
		t.Errorf("JSON line %q: %v", second, err)
	}
}

func TestWhatLibrariesPrintIsLoggedWithoutWhatTheyQuote(t *testing.T) {
	var out bytes.Buffer
	log := newLog(&out, config.Log{Format: "text"})
	_, _ = fmt.Fprintf(quoteless{log.Logger}, "Unsolicited response received on idle HTTP channel starting with %q; err=%v\n", "data: secret token", nil)
	if got := out.String(); !strings.Contains(got, "Unsolicited response") || strings.Contains(got, "secret token") {
		t.Errorf("logged %q", got)
	}
}

// Owners of leases and names in certificates are what others wrote.
func TestTablesDoNotMoveTheCursor(t *testing.T) {
	var out bytes.Buffer
	if err := table(&out, "LEASE OWNER", [][]string{{"a\tb", "\x1b[2J\u009b1A\u202eroot\nheld"}, {"é", "x y"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "LEASE  OWNER\na\ufffdb    \ufffd[2J\ufffd1A\ufffdroot\ufffdheld\né      x y\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
