package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"edge/config"
	"edge/proxy/exchange"
)

func TestRequestsForTheConnectionsOwnHostAreJudgedWithoutAllocations(t *testing.T) {
	s := New(Options{Admits: func(listener, policy, _, _ string) bool { return policy == "p" && listener == "https" }})
	site := tableOf(&config.Route{Hosts: []string{"a.example.com", "b.example.com"}, Path: "/"})
	c := &exchange.Conn{
		Listener: "https", Policy: "p", ServerName: "a.example.com", TLSState: &tls.ConnectionState{Version: tls.VersionTLS13},
		ClientCertificate: &x509.Certificate{NotAfter: time.Now().Add(time.Hour)},
	}
	now := time.Now()
	for _, host := range []string{"a.example.com", "b.example.com"} {
		if n := testing.AllocsPerRun(100, func() {
			if expired(c, now) || !s.passes(site, c, host) || !meets(c, config.TLS{ClientCA: "x", MinVersion: tls.VersionTLS12}) {
				t.Fatalf("%s does not pass", host)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", host, n)
		}
	}
}

func TestRefusalsAreToldUpToABoundInEachWindow(t *testing.T) {
	var r refusals
	now := time.Now()
	told := 0
	for range 10 * refusalLines {
		if _, ok := r.tell(now); ok {
			told++
		}
	}
	if told != refusalLines {
		t.Errorf("%d lines in a window, want %d", told, refusalLines)
	}
	if untold, ok := r.tell(now.Add(refusalWindow)); !ok || untold != 9*refusalLines {
		t.Errorf("in the next window: %d untold, %v; want %d", untold, ok, 9*refusalLines)
	}
	if untold, ok := r.tell(now.Add(refusalWindow)); !ok || untold != 0 {
		t.Errorf("after that: %d untold, %v", untold, ok)
	}
}
