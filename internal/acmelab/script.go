package acmelab

import (
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Statuses beyond HTTP that the function of SetFail may return.
const (
	Cut  = -1 // end the connection without an answer and without effect
	Lose = -2 // carry the request out, then end the connection: the answer is lost
)

// scripted stands before a server of the lab: it counts the requests, and
// delays and fails those that a test says. Its users embed it.
type scripted struct {
	front  *front
	inner  http.Handler
	label  func(*http.Request) string                               // of a request when it is counted
	refuse func(w http.ResponseWriter, r *http.Request, status int) // answers in the form of the server

	mu       sync.Mutex
	requests map[string]int
	delay    time.Duration
	fail     func(*http.Request) int
}

// listen starts the server on addr.
func (s *scripted) listen(addr string) (err error) {
	s.requests = map[string]int{}
	s.front, err = serve(addr, nil, s)
	return err
}

// Close ends the server.
func (s *scripted) Close() error { return s.front.close() }

// Requests counts requests by method and path, for example "PUT /certs/a/b",
// with "?list" behind the path of a LIST.
func (s *scripted) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

// Count is the number of requests with this method whose path starts with
// prefix; an empty method counts all.
func (s *scripted) Count(method, prefix string) int {
	n := 0
	for key, count := range s.Requests() {
		m, path, _ := strings.Cut(key, " ")
		if (method == "" || m == method) && strings.HasPrefix(path, prefix) {
			n += count
		}
	}
	return n
}

// SetDelay makes each request wait before it is handled.
func (s *scripted) SetDelay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// SetFail installs f, which is asked first about each request: 0 handles it, a
// status is answered in the form of the server, Cut and Lose end the
// connection. nil removes it. f may change the request that it lets pass.
func (s *scripted) SetFail(f func(*http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// SetDown takes the server off the net, or back on it.
func (s *scripted) SetDown(down bool) { s.front.setDown(down) }

// ServeHTTP implements http.Handler.
func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := s.label(r)
	s.mu.Lock()
	s.requests[key]++
	delay, fail := s.delay, s.fail
	s.mu.Unlock()
	if !wait(r.Context(), delay) {
		return
	}
	status := 0
	if fail != nil {
		status = fail(r)
	}
	switch status {
	case 0:
		s.inner.ServeHTTP(w, r)
	case Cut:
		cut(w)
	case Lose:
		s.inner.ServeHTTP(lost{http.Header{}}, r)
		cut(w)
	default:
		s.refuse(w, r, status)
	}
}

// lost is a response that nobody reads.
type lost struct{ header http.Header }

// Header implements http.ResponseWriter.
func (l lost) Header() http.Header { return l.header }

// Write implements http.ResponseWriter.
func (l lost) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (l lost) WriteHeader(int) {}
