package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"edge/lab/bench/internal/model"
)

// start puts the proxy in front of a model server, over TLS with HTTP/2.
func start(t *testing.T) *httptest.Server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- model.Serve(ln) }()
	t.Cleanup(func() { ln.Close(); <-served })

	h2c := httptest.NewUnstartedServer(http.HandlerFunc(model.H2))
	h2c.Config.Protocols = new(http.Protocols)
	h2c.Config.Protocols.SetUnencryptedHTTP2(true)
	h2c.Start()
	t.Cleanup(h2c.Close)

	front := httptest.NewUnstartedServer(nil)
	front.Config = newServer(newProxy(ln.Addr().String(), h2c.Listener.Addr().String()), nil)
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	return front
}

func TestRequestsReachTheModelServer(t *testing.T) {
	front := start(t)
	for _, h2 := range []bool{false, true} {
		transport := overProtocol(front, h2)
		resp, err := (&http.Client{Transport: transport}).Post(front.URL+"/sink", "application/json", strings.NewReader("12345"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		transport.CloseIdleConnections()
		if err != nil || string(b) != "5" || (resp.ProtoMajor == 2) != h2 {
			t.Errorf("got %q over %s, %v, want 5, h2 %v", b, resp.Proto, err, h2)
		}
	}
}

// overProtocol returns a transport that trusts the server and speaks HTTP/1.1, or
// HTTP/2 when h2 is set, and nothing else.
func overProtocol(front *httptest.Server, h2 bool) *http.Transport {
	t := front.Client().Transport.(*http.Transport).Clone()
	t.TLSClientConfig.NextProtos = nil
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	return t
}

// A backend that sends its head at once must not lose the stream
// (golang/go#40747): without full duplex 1 to 3 of 100 are cut.
func TestStreamsArriveWhole(t *testing.T) {
	front := start(t)
	transport := overProtocol(front, false)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for range 100 {
		resp, err := client.Post(front.URL+"/v1/chat/completions?stream=1&n=3&gap=1ms&jitter=0", "application/json", strings.NewReader(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || strings.Count(string(b), `"t":`) != 3 || !strings.HasSuffix(string(b), "[DONE]\n\n") {
			t.Fatalf("got %q, %v", b, err)
		}
	}
}

func TestGRPCGoesOverH2C(t *testing.T) {
	front := start(t)
	resp, err := front.Client().Post(front.URL+"/grpc/echo", "application/grpc", strings.NewReader("a message"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "a message" || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("got %q, trailer %v, %v", b, resp.Trailer, err)
	}
}

func TestBuffersAreUsedAgain(t *testing.T) {
	var p buffers
	b := p.Get()
	if len(b) != copySize {
		t.Fatalf("got %d bytes, want %d", len(b), copySize)
	}
	p.Put(b)
	if b := p.Get(); len(b) != copySize {
		t.Errorf("got %d bytes, want %d", len(b), copySize)
	}
}

func TestMissingCertificatesAreAnError(t *testing.T) {
	if err := run(t.Context(), settings{listen: "127.0.0.1:0", certs: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "ec.crt") {
		t.Errorf("got %v, want that ec.crt is missing", err)
	}
}
