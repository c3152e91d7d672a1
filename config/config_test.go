package config

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// complete checks what the comments of Config promise of every result.
func complete(t *testing.T, cfg *Config) {
	t.Helper()
	law := func(ok bool, format string, args ...any) {
		t.Helper()
		if !ok {
			t.Errorf("not complete: "+format, args...)
		}
	}
	law(cfg.Listeners != nil && cfg.Providers != nil && cfg.Issuers != nil && cfg.Certificates != nil && cfg.Pools != nil, "a nil map")
	law(cfg.Storage.URL != "" && cfg.Control.Socket != "" && cfg.Log.Format != "", "a default is missing")
	law(cfg.Bundles.MaxNames > 0 && cfg.Bundles.Packing != "" && len(cfg.Bundles.KeyTypes) > 0, "bundles %+v", cfg.Bundles)
	law(len(cfg.Routes) > 0, "no route")
	serving := 0
	for name, l := range cfg.Listeners {
		law(l.Name == name && l.Address != "" && len(l.Protocols) > 0, "listener %+v", l)
		if !l.Redirect {
			serving++
			law(l.TLS.MinVersion >= tls.VersionTLS12, "listener %+v", l)
		}
	}
	law(serving > 0, "no TLS listener")
	for name, i := range cfg.Issuers {
		law(i.Name == name && (i.Internal != nil) != (i.Directory != ""), "issuer %+v", i)
		law((i.Challenge == "") == (i.Internal != nil), "issuer %+v", i)
		law(i.Internal == nil || i.Internal.Lifetime > 0, "issuer %+v", i)
		law(cfg.ServeOnly || (i.Challenge == DNS01) == (len(i.Providers) > 0), "issuer %+v", i)
		for _, p := range i.Providers {
			law(cfg.Providers[p] != nil, "issuer %q: no provider %q", name, p)
		}
	}
	for name, p := range cfg.Providers {
		kinds := 0
		for _, set := range []bool{p.RFC2136 != nil, p.Route53 != nil, p.Cloudflare != nil, p.GoogleCloudDNS != nil, p.Azure != nil, p.Exec != nil} {
			if set {
				kinds++
			}
		}
		law(p.Exec == nil || len(p.Exec.Command) > 0 && p.Exec.Timeout > 0, "provider %+v", p)
		law(p.Name == name && kinds == 1 && p.Rate >= 0 && p.Pos.Line > 0, "provider %+v", p)
	}
	for name, c := range cfg.Certificates {
		law(c.Name == name && (c.File != nil) != (len(c.Names) > 0), "certificate %+v", c)
		law(c.File != nil || len(c.Issuers) > 0 && len(c.KeyTypes) > 0, "certificate %+v", c)
	}
	for name, p := range cfg.Pools {
		law(p.Name == name && len(p.Endpoints) > 0 && p.Balance != "" && p.Protocol != "" && p.Retry.Attempts > 0 && p.Connect > 0, "pool %+v", p)
		for _, e := range p.Endpoints {
			law(e.Weight > 0 && strings.Contains(e.URL, "://"), "endpoint %+v", e)
		}
		law(p.Health == nil || p.Health.Timeout > 0 && p.Health.Timeout <= p.Health.Interval && p.Health.Path != "", "health %+v", p.Health)
	}
	names := map[string]bool{}
	for _, r := range cfg.Routes {
		law(!names[r.Name] && r.Name != "", "route name %q", r.Name)
		names[r.Name] = true
		law(cfg.Pools[r.Pool] != nil && strings.HasPrefix(r.Path, "/") && len(r.Listeners) > 0, "route %+v", r)
		for _, l := range r.Listeners {
			law(cfg.Listeners[l] != nil && !cfg.Listeners[l].Redirect, "route %q: listener %q", r.Name, l)
		}
		for _, h := range r.Hosts {
			canonical, err := host(h)
			law(err == nil && canonical == h, "route %q: host %q", r.Name, h)
			law(len(cfg.IssuersFor(h)) > 0 || len(cfg.Certificates) > 0, "route %q: nobody issues for %q", r.Name, h)
		}
	}
}

func load(t *testing.T, path string) *Config {
	t.Helper()
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func TestShortestFileMeansTheDefaults(t *testing.T) {
	cfg := load(t, "testdata/good/shortest.yaml")
	equal(t, "listeners", cfg.Listeners, map[string]*Listener{
		"https": {Name: "https", Address: ":443", Protocols: []Protocol{H1, H2}, TLS: TLS{MinVersion: tls.VersionTLS12}},
		"http":  {Name: "http", Address: ":80", Protocols: []Protocol{H1}, Redirect: true},
	})
	equal(t, "storage", cfg.Storage.URL, "file:///var/lib/edge")
	equal(t, "issuer", cfg.Issuers["acme"], &Issuer{
		Name: "acme", Directory: letsEncrypt, Staging: letsEncryptStaging, Email: "ops@example.com",
		Challenge: DNS01, Providers: []string{"cloudflare"}, Pos: Pos{2, 1},
	})
	equal(t, "token", cfg.Providers["cloudflare"].Cloudflare.Token, Secret{"env:CLOUDFLARE_API_TOKEN"})
	equal(t, "bundles", cfg.Bundles, Bundles{[]string{"acme"}, ByZone, 25, []KeyType{P256}})
	equal(t, "pools", cfg.Pools["routes[0]"], &Pool{
		Name:      "routes[0]",
		Endpoints: []Endpoint{{"http://10.0.0.11:8000", 1}, {"http://10.0.0.12:80", 1}},
		Protocol:  PoolH1, Balance: RoundRobin, Retry: Retry{2, 1 << 20}, Connect: 5 * time.Second, Pos: Pos{5, 5},
	})
	equal(t, "route", cfg.Routes[0], &Route{
		Name: "routes[0]", Hosts: []string{"llm.example.com"}, Path: "/", Listeners: []string{"https"}, Pool: "routes[0]",
		Timeouts: Timeouts{10 * time.Minute, 2 * time.Minute, time.Minute, 0},
		Limits:   Limits{64 << 20, 32 << 10}, Pos: Pos{4, 5},
	})
	equal(t, "control", cfg.Control, Control{"/run/edge/control.sock"})
	equal(t, "log", cfg.Log, Log{"text", true})
	equal(t, "drain", cfg.Drain, Drain{0, time.Minute})
	equal(t, "warnings", len(cfg.Warnings), 0)
}

func TestEveryKeyArrives(t *testing.T) {
	cfg := load(t, "testdata/good/every_key.yaml")
	equal(t, "main", cfg.Listeners["main"], &Listener{
		Name: "main", Address: "[::1]:8443", Protocols: []Protocol{H2}, TLS: TLS{MinVersion: tls.VersionTLS13}, DefaultCertificate: "corp",
		Trusted: []Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")},
	})
	equal(t, "plain", cfg.Listeners["plain"], &Listener{
		Name: "plain", Address: "127.0.0.1:0", Protocols: []Protocol{H1}, Redirect: true,
		Trusted: []Prefix{netip.MustParsePrefix("::1/128")},
	})
	equal(t, "storage", cfg.Storage.URL, "s3://acme-edge/prod?region=eu-west-1&endpoint=http://127.0.0.1:9000&path_style=true")
	equal(t, "corp provider", cfg.Providers["corp"].RFC2136, &RFC2136{"10.0.0.53:53", "edge.", "hmac-sha512", Secret{"credential:tsig"}})
	equal(t, "corp zones", cfg.Providers["corp"].Zones, []string{"corp.example", "xn--bcher-kva.example"})
	equal(t, "aws", cfg.Providers["aws"].Route53, &Route53{"eu-west-1", "Z0123456789"})
	equal(t, "bare", cfg.Providers["bare"].Route53, &Route53{})
	equal(t, "cf", cfg.Providers["cf"].Cloudflare, &Cloudflare{Secret{"file:/etc/edge/cf"}})
	lab := *cfg.Issuers["lab"]
	lab.Pos = Pos{}
	equal(t, "lab", lab, Issuer{
		Name: "lab", Directory: "https://127.0.0.1:14000/dir", CA: "testdata/good/lab.pem", Email: "ops@example.com", Profile: "default",
		Challenge: DNS01, Providers: []string{"corp", "aws"}, Resolvers: []string{"127.0.0.1:5353", "[2001:db8::1]:53"},
		Authoritative: Authoritative{Servers: []string{"127.0.0.1:5353"}},
	})
	equal(t, "staging", cfg.Issuers["staging"].Directory, letsEncryptStaging)
	equal(t, "authoritative", cfg.Issuers["staging"].Authoritative, Authoritative{Off: true})
	equal(t, "bundles", cfg.Bundles, Bundles{[]string{"lab"}, PerName, 100, []KeyType{P384}})
	equal(t, "bundle", cfg.Certificates["bundle"].Names, []string{"example.com", "*.models.example.com"})
	equal(t, "bundle issuers", cfg.Certificates["bundle"].Issuers, []string{"staging"})
	equal(t, "bundle key", cfg.Certificates["bundle"].KeyTypes[0], RSA2048)
	equal(t, "plain key", cfg.Certificates["plain"].KeyTypes[0], P384)
	equal(t, "plain issuers", cfg.Certificates["plain"].Issuers, []string{"lab"})
	equal(t, "corp file", cfg.Certificates["corp"].File, &CertificateFile{"/etc/edge/corp.pem", Secret{"file:testdata/good/corp.key"}})
	gpus := *cfg.Pools["gpus"]
	gpus.Pos = Pos{}
	equal(t, "gpus", gpus, Pool{
		Name: "gpus", Endpoints: []Endpoint{{"http://10.0.0.11:8000", 1}, {"https://gpu.internal:443", 2}, {"http://[2001:db8::7]:80", 1}},
		Protocol: PoolH1, Balance: LeastRequests, Health: &Health{"/health?full=1", 10 * time.Second, 5 * time.Second, 1, 2},
		Retry: Retry{3, 0}, CA: "testdata/good/gpus.pem", ServerName: "gpu.example.com", Connect: 2 * time.Second,
	})
	equal(t, "protocols", [2]PoolProtocol{cfg.Pools["rpc"].Protocol, cfg.Pools["far"].Protocol}, [2]PoolProtocol{PoolH2C, PoolH2})
	equal(t, "address for a name", cfg.Pools["far"].ServerName, "2001:db8::7")
	equal(t, "quick health", cfg.Pools["cpu"].Health.Timeout, time.Second)
	chat := *cfg.Routes[0]
	chat.Pos = Pos{}
	equal(t, "chat", chat, Route{
		Name: "chat", Hosts: []string{"llm.example.com", "*.models.example.com"}, Path: "/v1", Listeners: []string{"main"}, Pool: "gpus",
		TLS: TLS{MinVersion: tls.VersionTLS13}, Timeouts: Timeouts{0, time.Hour, 36 * time.Hour, 24 * time.Hour}, Limits: Limits{0, 16 << 10},
	})
	equal(t, "exact", [2]any{cfg.Routes[1].Path, cfg.Routes[1].Exact}, [2]any{"/v1/models", true})
	equal(t, "inherited", cfg.Routes[1].Timeouts, Timeouts{time.Minute, 30 * time.Second, 0, 0})
	equal(t, "inherited limits", cfg.Routes[1].Limits, Limits{1 << 30, 16 << 10})
	equal(t, "any host", len(cfg.Routes[2].Hosts), 0)
	equal(t, "hosts", cfg.Hosts(), []string{"*.models.example.com", "llm.example.com"})
	equal(t, "control", cfg.Control, Control{"testdata/good/edge.sock"})
	equal(t, "log", cfg.Log, Log{"json", false})
	equal(t, "drain", cfg.Drain, Drain{5 * time.Second, 2 * time.Minute})
}

func TestListenersAndRoutesKeepTheirPlaces(t *testing.T) {
	cfg := load(t, "testdata/good/every_key.yaml")
	for what, pos := range map[string]Pos{
		"storage": cfg.Storage.Pos, "provider": cfg.Providers["corp"].Pos, "issuer": cfg.Issuers["lab"].Pos,
		"certificate": cfg.Certificates["bundle"].Pos, "pool": cfg.Pools["gpus"].Pos, "route": cfg.Routes[0].Pos,
	} {
		if pos.Line < 2 || pos.Column < 1 {
			t.Errorf("%s is at %+v", what, pos)
		}
	}
}

// The target is the configuration that edge is built toward. Each of its keys
// works or is refused by name: none is unknown, and none is ignored.
func TestEveryKeyOfTheTargetWorksOrIsNotSupportedYet(t *testing.T) {
	_, err := Load("testdata/target.yaml")
	problems := problemsOf(t, err)
	if len(problems) < 30 {
		t.Errorf("only %d problems; is this the target?", len(problems))
	}
	for _, p := range problems {
		if !strings.HasSuffix(p.Message, "not supported yet") {
			t.Error(p)
		}
	}
}

// What the target does not refuse is read: a slip in any such key is noticed.
func TestNoKeyOfTheTargetIsIgnored(t *testing.T) {
	data, err := os.ReadFile("testdata/target.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("f", data)
	refused := problemsOf(t, err)
	free := map[string]bool{ // names that nothing refers to
		"listeners.http": true, "providers.corp": true, "certificates.bundle": true, "certificates.corp": true,
		"policies.mtls": true, "policies.office": true, "issuers.no_credentials": true, "issuers.lab": true,
	}
	tried := 0
	for path, pos := range keysOf(t, data) {
		whole := slices.ContainsFunc(refused, func(p Problem) bool {
			return path == p.Path || strings.HasPrefix(path, p.Path+".") || strings.HasPrefix(path, p.Path+"[")
		})
		if whole || free[path] {
			continue
		}
		tried++
		_, err := Parse("f", insert(data, pos, "zz_"))
		if got := problemsOf(t, err); reflect.DeepEqual(sayings(got), sayings(refused)) {
			t.Errorf("%d:%d: nobody notices a slip in %s", pos.Line, pos.Column, path)
		}
	}
	if tried < 100 {
		t.Errorf("only %d keys tried", tried)
	}
}

// keysOf returns the path and place of every key.
func keysOf(t *testing.T, data []byte) map[string]Pos {
	t.Helper()
	root, err := newDecoder("f").document(data)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]Pos{}
	var walk func(node *yaml.Node, path string)
	walk = func(node *yaml.Node, path string) {
		for i, child := range node.Content {
			switch {
			case node.Kind == yaml.SequenceNode:
				walk(child, fmt.Sprintf("%s[%d]", path, i))
			case i%2 == 0:
				below := strings.TrimPrefix(path+"."+child.Value, ".")
				keys[below] = Pos{child.Line, child.Column}
				walk(node.Content[i+1], below)
			}
		}
	}
	walk(root, "")
	return keys
}

func insert(data []byte, pos Pos, text string) []byte {
	for i := range data {
		if position(data, i) == pos {
			return slices.Concat(data[:i], []byte(text), data[i:])
		}
	}
	return data
}

func sayings(problems Problems) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Path+": "+p.Message)
	}
	return all
}

func TestTheSocketIsKnownAlsoWhenTheRestIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"version: 1\ncontrol: {socket: /srv/s}\nroutes: [{host: \"*\", pool: none}]\nx: y\n": "/srv/s",
		"version: 1\n":         DefaultSocket,
		"version: 1\n\tx: y\n": DefaultSocket,
	} {
		path := write(t, "routes.yaml", text)
		got, err := SocketOf(path)
		if got != want || (err != nil) != strings.Contains(text, "\t") {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	if got, err := SocketOf("none.yaml"); got != DefaultSocket || err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("no file: %s, %v", got, err)
	}
}
