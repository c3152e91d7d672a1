package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

// refuse runs edge with a configuration that it must not start with and
// returns its exit code and what it said.
func (w *world) refuse(config string, env ...string) (code int, said string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(w.t), "run", "--config", config)
	cmd.Env = append(append(os.Environ(), w.env()...), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		w.t.Fatalf("edge ended with %v, want a refusal; it said %s", err, stderr.String())
	}
	return exit.ExitCode(), stderr.String()
}

func TestARefusedStartIsOneLineWithAHint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	certificate := func(file string) string {
		return fmt.Sprintf("certificates: {own: {file: {certificate: %q, private_key: %q}}}", file, file)
	}
	for _, c := range []struct {
		name, config string
		code         int
		want         []string
	}{
		{"storage of another scheme", w.config("scheme", settings{storage: "ftp://bucket"}), 3, []string{"scheme.yaml:5:", "storage", "s3"}},
		{"storage without a bucket", w.config("bucket", settings{storage: "s3://"}), 3, []string{"bucket.yaml:5:", "bucket"}},
		{"secret that is not set", w.config("unset", settings{tsig: "env:EDGE_TEST_UNSET"}), 3, []string{"EDGE_TEST_UNSET"}},
		{"secret that is no key", w.config("base64", settings{tsig: "env:EDGE_TEST_GARBAGE"}), 3, []string{"base64"}},
		{"missing certificate file", w.config("file", settings{extra: certificate("/nonexistent/own.pem")}), 3, []string{"/nonexistent/own.pem"}},
		{"missing CA file", w.config("cafile", settings{provider: "{route53: }", extra: `pools: {unused: {endpoints: ["https://127.0.0.1:1"], tls: {ca: /nonexistent/ca.pem}}}`}), 1, []string{"/nonexistent/ca.pem"}},
		{"missing configuration", filepath.Join(w.dir, "none.yaml"), 3, []string{"none.yaml"}},
	} {
		code, said := w.refuse(c.config, "EDGE_TEST_GARBAGE=top secret!")
		if code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.code)
		}
		t.Logf("%s: %s", c.name, strings.TrimSpace(said))
		t.Run(c.name, func(t *testing.T) { oneLine(t, lastLine(said), c.want...) })
		if strings.Contains(said, "top secret!") {
			t.Errorf("%s: the secret is in %q", c.name, said)
		}
	}
	busy := strings.ReplaceAll(read(t, w.config("busy", settings{})), `"127.0.0.1:0"}`, fmt.Sprintf(`%q}`, taken.Addr()))
	busy = strings.Replace(busy, "  http: ", "  #", 1)
	code, said := w.refuse(w.file("busy.yaml", busy))
	t.Log(said)
	if code != 1 {
		t.Errorf("port in use: exit code %d, want 1", code)
	}
	oneLine(t, lastLine(said), taken.Addr().String(), "in use")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lastLine skips warnings that came before.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndex(s, "\n")+1:]
}

// What goes wrong outside while edge runs: each is told in one line with a
// hint, by the log and by edge certs ls, and what is served goes on.
func TestATroubledIssuanceIsOneLineAndServingGoesOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		change  func(w *world) settings
		trouble func(w *world)
		env     []string
		want    []string
	}{
		{
			"wrong TSIG key", func(*world) settings { return settings{tsig: "env:EDGE_TEST_WRONG"} },
			func(*world) {},
			[]string{"EDGE_TEST_WRONG=d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc="},
			[]string{"key"},
		},
		{
			"unreachable CA", func(*world) settings { return settings{} },
			func(w *world) { w.lab.CA.SetDown(true) }, nil,
			[]string{"directory"},
		},
		{
			"DNS server that does not answer", func(*world) settings { return settings{} },
			func(w *world) {
				w.lab.DNS.SetFault(func(acmelab.Query) (int, bool) { return 2, true }) // SERVFAIL
			}, nil,
			[]string{"SERVFAIL"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, acmelab.Options{}, modelserver.Options{})
			c.trouble(w)
			config := w.config("a", c.change(w))
			p := w.launch(config, c.env...)
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			line, err := p.WaitLine(ctx, func(l edgetest.Line) bool { return l.Text("step") == "failed" })
			if err != nil {
				t.Fatal(err)
			}
			t.Log(line.Text("detail"))
			s, err := p.Status(ctx)
			if err != nil || len(s.Certificates.Certificates) != 1 {
				t.Fatalf("status %+v, %v", s.Certificates, err)
			}
			oneLine(t, s.Certificates.Certificates[0].Error, c.want...)
			if s.Certificates.Certificates[0].NextAttempt.IsZero() {
				t.Error("no next attempt")
			}
			out, err := exec.CommandContext(ctx, binary(t), "certs", "ls", "-c", config).CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("failed")) || !bytes.Contains(out, []byte("next attempt in")) {
				t.Errorf("certs ls: %v\n%s", err, out)
			}
		})
	}
}

// The bucket refuses the credentials, then the whole bucket goes away: edge
// keeps serving, says it once in one line, and works again when it is back.
func TestAStorageOutageIsToldOnceAndServingGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{CA: acmelab.CAOptions{Validity: 60 * time.Second}}, modelserver.Options{})
	p, addr := w.start(w.config("a", settings{}))
	before := w.leaf(addr, "example.test").SerialNumber
	w.lab.S3.SetFail(func(*http.Request) int { return http.StatusForbidden })
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	line, err := p.WaitLine(ctx, func(l edgetest.Line) bool {
		return l.Text("level") != "INFO" && strings.Contains(fmt.Sprint(l), "s3://")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(line)
	w.leaf(addr, "example.test")
	w.lab.S3.SetFail(nil)
	eventually(t, 90*time.Second, "no renewal after the bucket came back", func() bool {
		leaf, err := w.handshake(addr, "example.test")
		if err != nil {
			t.Fatalf("handshake: %v", err)
		}
		return leaf.SerialNumber.Cmp(before) != 0
	})
}

// SIGHUP takes a good file and refuses a bad one whole, and the last good one
// stays in force.
func TestSIGHUPReloadsAllOrNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	route := func(path string) settings {
		return settings{routes: fmt.Sprintf("  - {host: \"*.example.test\", path: %s, endpoints: [%q]}\n", path, w.model.URL)}
	}
	config := w.config("a", route("/v1"))
	p, addr := w.start(config)
	client := w.client(addr, true)
	code := func(path string) int {
		resp, err := client.Get("https://chat.example.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	hup := func(message string) {
		t.Helper()
		seen := len(p.Lines())
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := p.WaitLine(ctx, func(l edgetest.Line) bool {
			seen--
			return seen < 0 && strings.HasPrefix(l.Message(), message)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := code("/v1/models"); got != http.StatusOK {
		t.Fatalf("%d before any reload", got)
	}

	// The new route is good, another line is not: nothing of it comes in force.
	w.config("a", settings{routes: route("/health").routes, extra: "no_such_key: 1"})
	hup("reload refused")
	if v1, health := code("/v1/models"), code("/health"); v1 != http.StatusOK || health != http.StatusNotFound {
		t.Errorf("after a refused reload: /v1 %d, /health %d; want the old routes", v1, health)
	}
	s, err := p.Status(t.Context())
	if err != nil || !strings.Contains(s.Config.Refused, "no_such_key") {
		t.Errorf("status says %q, %v", s.Config.Refused, err)
	}
	out, err := exec.CommandContext(t.Context(), binary(t), "reload", "--socket", filepath.Join(w.dir, "a.sock")).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 || !bytes.Contains(out, []byte("a.yaml:")) {
		t.Errorf("edge reload: %v\n%s", err, out)
	}

	w.config("a", route("/health"))
	hup("reloaded")
	if v1, health := code("/v1/models"), code("/health"); v1 != http.StatusNotFound || health != http.StatusOK {
		t.Errorf("after a good reload: /v1 %d, /health %d; want the new route", v1, health)
	}
}
