// Package modelserver is a model server that does what it is told: an HTTP/1.1
// server with the OpenAI chat completions API, whose every answer follows a
// Script, token by token if need be. It stands behind edge in tests and in the
// programs of lab.
//
//	POST /v1/chat/completions   JSON, or SSE with "stream": true
//	GET  /v1/models
//	GET  /health                see Server.SetHealth
//	POST /confirm?n=3&key=      what Server.ConfirmKey does, from another process
//	     /echo                  what has arrived, as JSON; see Echo
//	     /duplex                each piece of the request body, at once, as it comes
//	GET  /ws                    a websocket that echoes (RFC 6455)
package modelserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// NameHeader tells in each answer which server gave it.
	NameHeader = "X-Model-Server"

	// KeyHeader of a request names the gate that its answer waits at.
	KeyHeader = "X-Gate-Key"

	maxBody     = 64 << 20 // of a request
	maxKept     = 4 << 10  // of a body in Seen
	maxSeen     = 10_000   // requests that are kept; the oldest go first
	maxAborts   = 1024     // that nobody has received; later ones are dropped
	maxGates    = 1024
	maxConfirms = 1 << 16 // ahead of their tokens
)

// Script is how one request is answered. The zero value answers 200 at once
// with a few tokens.
type Script struct {
	Tokens    []string      // nil means "Hello", ",", " world", "!"
	HeadDelay time.Duration // before the response head
	EarlyHead bool          // send the head of a stream before the first token is due
	Delay     time.Duration // before each token
	Hang      bool          // send nothing until the client leaves

	// Gate holds a stream back: each token but the first, and the end, is sent
	// only after one more Confirm. A client that confirms each token it has
	// received proves that nothing between it and the server collects tokens.
	Gate bool

	Status     int         // 0 means 200; from 400 on the body is an error of the API
	Header     http.Header // added to the response
	EarlyHints http.Header // of a 103 response before the real one; nil means none
	Trailer    http.Header // of a streamed response

	// AbortAfter closes the connection in the middle of the body: of a stream
	// after that many tokens, of a JSON body half way. Negative is right after
	// the head, 0 is never. Reset does so with RST instead of FIN.
	AbortAfter int
	Reset      bool

	SkipBody bool   // answer without reading the request body, as JSON
	Greeting string // a websocket text frame in the same write as the 101 response
}

// Options are the settings of a Server. The zero value is a healthy server on a
// free port of 127.0.0.1.
type Options struct {
	Name   string   // who answers; "" means "model"
	Models []string // of /v1/models; nil means one, "test-model"
	Script Script   // of every request, until SetScript

	// Choose, if not nil, makes the script of each request to the chat API and
	// /ws. It may be called concurrently.
	Choose func(Seen) Script

	Addr        string        // to listen on; "" is a free port of 127.0.0.1
	Listener    net.Listener  // instead of Addr; the Server closes it
	TLS         *tls.Config   // nil means plain HTTP
	IdleTimeout time.Duration // after which an idle connection is closed; 0 is never
}

// Seen is a request that has arrived.
type Seen struct {
	At       time.Time
	Method   string
	Target   string // as it came in the request line
	Host     string
	Header   http.Header
	Body     []byte // its beginning, at most 4 KiB
	BodySize int64  // of what was read
	Remote   string // address of the connection, to tell reused ones
}

// Abort tells that a client has left before its answer was complete.
type Abort struct {
	At     time.Time
	Target string // of the request
	Tokens int    // sent until then
}

// Server is a running model server. Methods may be called concurrently.
type Server struct {
	URL  string // without a final slash
	Addr string

	name    string
	models  []string
	choose  func(Seen) Script
	srv     *http.Server
	closing chan struct{}
	served  chan error
	running sync.WaitGroup // handlers
	aborted chan Abort

	mu      sync.Mutex
	closed  bool
	script  Script
	health  int
	checks  int
	total   int
	conns   int
	seen    []Seen
	arrived chan struct{} // closed and replaced at each arrival
	gates   map[string]chan struct{}
	tunnels map[net.Conn]struct{}
}

// Start runs a server. The caller must Close it.
func Start(o Options) (*Server, error) {
	s := &Server{
		name: o.Name, models: o.Models, choose: o.Choose, script: o.Script, health: http.StatusOK,
		closing: make(chan struct{}), served: make(chan error, 1), aborted: make(chan Abort, maxAborts),
		arrived: make(chan struct{}), gates: map[string]chan struct{}{}, tunnels: map[net.Conn]struct{}{},
	}
	if s.name == "" {
		s.name = "model"
	}
	if s.models == nil {
		s.models = []string{"test-model"}
	}
	ln := o.Listener
	if ln == nil {
		addr := o.Addr
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		var lc net.ListenConfig
		var err error
		if ln, err = lc.Listen(context.Background(), "tcp", addr); err != nil {
			return nil, fmt.Errorf("modelserver: %w", err)
		}
	}
	s.Addr = ln.Addr().String()
	s.URL = "http://" + s.Addr
	if o.TLS != nil {
		s.URL = "https://" + s.Addr
		ln = tls.NewListener(ln, o.TLS)
	}
	s.srv = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: time.Minute,
		IdleTimeout:       o.IdleTimeout,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		Protocols:         new(http.Protocols),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				s.mu.Lock()
				s.conns++
				s.mu.Unlock()
			}
		},
	}
	s.srv.Protocols.SetHTTP1(true)
	go func() { s.served <- s.srv.Serve(ln) }()
	return s, nil
}

// Close cuts every connection and waits for the handlers. A closed server
// refuses connections; Start with the same Addr brings it back.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.closing)
	var tunnels []net.Conn
	for c := range s.tunnels {
		tunnels = append(tunnels, c)
	}
	s.mu.Unlock()
	for _, c := range tunnels {
		_ = c.Close()
	}
	err := s.srv.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	s.running.Wait()
	if err != nil {
		return fmt.Errorf("modelserver: close %s: %w", s.Addr, err)
	}
	return nil
}

// SetScript makes sc the script of requests from now on.
func (s *Server) SetScript(sc Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = sc
}

// SetHealth makes /health answer with status; 0 lets it hang.
func (s *Server) SetHealth(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = status
}

// HealthChecks counts the requests for /health, which are not in Requests.
func (s *Server) HealthChecks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checks
}

// Requests lists the requests so far, the oldest first. Of a very long list the
// oldest are missing; see Count.
func (s *Server) Requests() []Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// Count is the number of all requests so far, health checks excepted.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Connections is the number of connections accepted so far.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Wait returns when at least n requests have arrived, their bodies read.
func (s *Server) Wait(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		total, arrived := s.total, s.arrived
		s.mu.Unlock()
		if total >= n {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return fmt.Errorf("modelserver: %d of %d requests have arrived: %w", total, n, ctx.Err())
		}
	}
}

// Aborted receives one Abort for each client that leaves before its answer is
// complete.
func (s *Server) Aborted() <-chan Abort { return s.aborted }

// Confirm lets a stream without a key send one more token: see Script.Gate.
func (s *Server) Confirm() { s.ConfirmKey("", 1) }

// ConfirmKey lets the stream whose request has key in KeyHeader send n more
// tokens. It may come before the request. It reports false, and confirms
// nothing more, when far too many confirmations are waiting.
func (s *Server) ConfirmKey(key string, n int) bool {
	gate := s.gate(key)
	if gate == nil {
		return false
	}
	for range n {
		select {
		case gate <- struct{}{}:
		default:
			return false
		}
	}
	return true
}

// gate returns the gate of key, nil when there are too many.
func (s *Server) gate(key string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	gate := s.gates[key]
	if gate == nil && len(s.gates) < maxGates {
		gate = make(chan struct{}, maxConfirms)
		s.gates[key] = gate
	}
	return gate
}

// removeGate forgets confirmations that a stream did not use.
func (s *Server) removeGate(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.gates, key)
}

// arrive reads the body of r, unless told not to, and notes the request.
func (s *Server) arrive(r *http.Request) (Seen, []byte, Script) {
	seen := Seen{
		At: time.Now(), Method: r.Method, Target: r.RequestURI, Host: r.Host,
		Header: r.Header.Clone(), Remote: r.RemoteAddr,
	}
	s.mu.Lock()
	script := s.script
	s.mu.Unlock()
	if s.choose != nil {
		script = s.choose(seen)
	}
	var body []byte
	if !script.SkipBody {
		body, _ = io.ReadAll(io.LimitReader(r.Body, maxBody)) // what has come is noted
	}
	seen.BodySize = int64(len(body))
	seen.Body = slices.Clone(body[:min(len(body), maxKept)])

	s.mu.Lock()
	defer s.mu.Unlock()
	s.total++
	if len(s.seen) >= maxSeen {
		s.seen = slices.Delete(s.seen, 0, maxSeen/2)
	}
	s.seen = append(s.seen, seen)
	close(s.arrived)
	s.arrived = make(chan struct{})
	return seen, body, script
}

// left notes that the client of r has gone, unless the server itself ends.
func (s *Server) left(r *http.Request, tokens int) {
	select {
	case <-s.closing:
		return
	default:
	}
	select {
	case s.aborted <- Abort{At: time.Now(), Target: r.RequestURI, Tokens: tokens}:
	default:
	}
}

// pause waits for d and tells whether the client and the server are still
// there.
func (s *Server) pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-s.closing:
	}
	return false
}

// hang waits until the client leaves or the server ends.
func (s *Server) hang(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-s.closing:
	}
}
