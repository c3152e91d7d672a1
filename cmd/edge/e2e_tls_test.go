package main_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/modelserver"
)

// policies has three hosts under one certificate; modern demands TLS 1.3.
func (w *world) policies() settings {
	return settings{
		extra: `policies: {strict: {tls: {min_version: "1.3"}}}`,
		routes: fmt.Sprintf(`  - {match: {host: [one.example.test, two.example.test]}, pool: m}
  - {match: {host: modern.example.test}, policies: [strict], pool: m}
  - {match: {host: ["*.example.test"], path: /only-here}, pool: m}
pools: {m: {endpoints: [%q]}}
`, w.model.URL),
	}
}

// get sends a request for host over the connection that client keeps to addr,
// by coalescing: the connection was made for another name.
func status(t *testing.T, client *http.Client, sni, host string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+sni+"/v1/models", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestACoalescedRequestMayNotCrossTLSPolicies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	_, addr := w.start(w.config("a", w.policies()))
	for _, p := range protocols {
		client := w.client(addr, p.h2)
		for _, c := range []struct {
			sni, host string
			want      int
		}{
			{"one.example.test", "one.example.test", http.StatusOK},
			{"one.example.test", "ONE.example.test.:443", http.StatusOK},
			{"one.example.test", "two.example.test", http.StatusOK}, // one certificate, one policy
			{"one.example.test", "modern.example.test", http.StatusMisdirectedRequest},
			{"modern.example.test", "one.example.test", http.StatusMisdirectedRequest},
			{"one.example.test", "unrouted.example.org", http.StatusNotFound},
			{"modern.example.test", "modern.example.test", http.StatusOK},
		} {
			if got := status(t, client, c.sni, c.host); got != c.want {
				t.Errorf("%s: server name %s, host %s: %d, want %d", p.name, c.sni, c.host, got, c.want)
			}
		}
	}
}

// A session of a host that takes TLS 1.2 is offered at the host that demands
// 1.3: it must not be resumed there, and the handshake must not fail for it.
func TestASessionIsNotResumedUnderAnotherPolicy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	_, addr := w.start(w.config("a", w.policies()))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := oneSession{ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		connect := func(name string, newest uint16) (tls.ConnectionState, error) {
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, &tls.Config{
				RootCAs: w.roots, ServerName: name, ClientSessionCache: cache, MaxVersion: newest, NextProtos: []string{"http/1.1"},
			})
			if err != nil {
				return tls.ConnectionState{}, err
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
			_, err = conn.Read(make([]byte, 1)) // a TLS 1.3 ticket comes with the first data
			return conn.ConnectionState(), err
		}
		if _, err := connect("one.example.test", version); err != nil {
			t.Fatal(err)
		}
		if s, err := connect("two.example.test", version); err != nil || !s.DidResume {
			t.Errorf("%s, same policy: resumed %v, %v; want a resumption", tls.VersionName(version), s.DidResume, err)
		}
		s, err := connect("modern.example.test", tls.VersionTLS13)
		if err != nil || s.DidResume || s.Version != tls.VersionTLS13 {
			t.Errorf("%s session at a stricter host: resumed %v, %s, %v; want a full 1.3 handshake", tls.VersionName(version), s.DidResume, tls.VersionName(s.Version), err)
		}
	}
	_, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: w.roots, ServerName: "modern.example.test", MaxVersion: tls.VersionTLS12})
	if err == nil {
		t.Error("the strict host took TLS 1.2")
	}
}

// oneSession offers one session whatever the server's name is, as a client may.
type oneSession struct{ tls.ClientSessionCache }

func (s oneSession) Get(string) (*tls.ClientSessionState, bool) { return s.ClientSessionCache.Get("") }
func (s oneSession) Put(_ string, cs *tls.ClientSessionState)   { s.ClientSessionCache.Put("", cs) }

func TestAnUnknownServerNameIsRefusedByItsAlert(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	_, addr := w.start(w.config("a", settings{}))
	for _, name := range []string{"example.org", "a.b.example.test", ""} {
		_, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: unrecognized name") {
			t.Errorf("server name %q: %v, want the alert unrecognized_name", name, err)
		}
	}
}

func TestPort80Redirects(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	p, addr := w.start(w.config("a", settings{}))
	plain, err := p.Addr(t.Context(), "http")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	client := w.client(plain, false)
	for url, want := range map[string]string{
		"http://chat.example.test/v1/models?a=1;b":      "https://chat.example.test/v1/models?a=1;b",
		"http://chat.example.test:8080/v1/models?a=1;b": "https://chat.example.test:" + port + "/v1/models?a=1;b",
	} {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode/100 != 3 || got != want {
			t.Errorf("%s: %s to %q, want %q", url, resp.Status, got, want)
		}
	}
}

func TestUnknownHostsAndPathsAre404InTheCallersDialect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	routes := fmt.Sprintf("  - {host: \"*.example.test\", path: /v1, endpoints: [%q]}\n", w.model.URL)
	_, addr := w.start(w.config("a", settings{routes: routes}))
	resp, err := w.client(addr, true).Get("https://chat.example.test/v1beta")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		t.Errorf("%s %s, want a 404 problem", resp.Status, resp.Header.Get("Content-Type"))
	}
}
