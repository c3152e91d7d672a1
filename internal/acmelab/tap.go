package acmelab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"

	"github.com/miekg/dns"
)

// maxTapped bounds the body of a request that passes a Tap.
const maxTapped = 4 << 20

// The parts of a lab, for Request.Part.
const (
	PartCA  = "ca"
	PartDNS = "dns"
	PartS3  = "s3"
)

// UpdateOp is the Request.Op of a dynamic update of a zone.
const UpdateOp = "UPDATE"

// Request is one request that passes a Tap.
type Request struct {
	N       int    // its number, from 1, in the order in which requests arrive; 0 when TapOptions.Skip leaves it out
	Part    string // PartCA, PartDNS or PartS3
	Op      string // method of HTTP; type of a question ("TXT"), or UpdateOp
	Target  string // path, with "?list" behind that of a LIST of S3; canonical name of a question, or of the zone of an update
	Body    []byte // of HTTP; nil for DNS
	Handled bool   // it has had its effect, and the answer leaves when the hook returns
	Status  int    // once it is handled: of HTTP, 0 when the lab was told to cut the connection; or the response code of DNS
}

// String is what a person reads of a request.
func (r Request) String() string {
	when := "before"
	if r.Handled {
		when = "after"
	}
	return fmt.Sprintf("%s %d: %s %s %s", when, r.N, r.Part, r.Op, r.Target)
}

// TapOptions are the settings of a Tap.
type TapOptions struct {
	// Skip tells which requests get no number, for example what a process sends
	// by the clock. They pass Hook all the same. nil numbers every request.
	Skip func(Request) bool

	// Hook is called twice for each request: before it is handled, and when it
	// was handled but before its answer is sent. The request waits until Hook
	// returns; others go on, so Hook is called concurrently. If it returns false
	// the connection ends there without an answer; before, that means without
	// effect. nil lets everything pass.
	Hook func(Request) (pass bool)
}

// Tap is a second way into a Lab: the same CA, zones and buckets at addresses
// of its own. It numbers all requests that come this way in one sequence, and
// stops each of them before and after its effect, so that a test can kill or
// stop the process that sent it exactly there, without a failpoint in that
// process.
//
// Who uses which way is a matter of addresses: a test gives them to the process
// under test alone, and other replicas, other worlds in the same lab and the
// CA's own questions to the DNS server pass by. So one lab serves many taps.
//
// Scripted faults of the lab (CAOptions.Gate, CAOptions.Instead, S3.SetFail,
// DNSOptions.Fault, DNSOptions.Lag) lie behind the tap and work for its requests
// too.
type Tap struct {
	// CA is to be dialled in place of the host in the CA's URLs. The URLs stay
	// what they are: accounts and orders are named by them, in journals too.
	CA  string
	DNS string // for updates and questions; the CA's own go elsewhere
	S3  string // URL of the server

	o       TapOptions
	fronts  []*front
	servers []*dns.Server

	mu sync.Mutex
	n  int
}

// Tap makes another way into the lab. The caller must Close it, before the lab.
func (l *Lab) Tap(o TapOptions) (*Tap, error) {
	t := &Tap{o: o}
	ca, err := serve("", l.CA.cert, t.http(PartCA, http.HandlerFunc(l.CA.serveHTTP)))
	if err != nil {
		return nil, err
	}
	t.fronts = append(t.fronts, ca)
	t.CA = ca.ln.Addr().String()
	s3, err := serve("", nil, t.http(PartS3, l.S3))
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.fronts = append(t.fronts, s3)
	t.S3 = s3.url
	if t.servers, t.DNS, err = l.DNS.also(t.dns(l.DNS.serve)); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// StoreURL is S3.StoreURL by way of the tap.
func (t *Tap) StoreURL(bucket, prefix string) string {
	s := S3{Endpoint: t.S3}
	return s.StoreURL(bucket, prefix)
}

// Count tells how many requests have got a number.
func (t *Tap) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Close ends the way. Requests that wait in a hook must have been released.
func (t *Tap) Close() error {
	var errs []error
	for _, f := range t.fronts {
		errs = append(errs, f.close())
	}
	for _, s := range t.servers {
		errs = append(errs, s.Shutdown())
	}
	return errors.Join(errs...)
}

// arrive numbers r and says whether it may be handled.
func (t *Tap) arrive(r *Request) bool {
	if t.o.Skip == nil || !t.o.Skip(*r) {
		t.mu.Lock()
		t.n++
		r.N = t.n
		t.mu.Unlock()
	}
	return t.o.Hook == nil || t.o.Hook(*r)
}

// leave says whether the answer to r may be sent.
func (t *Tap) leave(r *Request, status int) bool {
	r.Handled, r.Status = true, status
	return t.o.Hook == nil || t.o.Hook(*r)
}

func (t *Tap) http(part string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTapped))
		if err != nil {
			cut(w)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		req := Request{Part: part, Op: r.Method, Target: r.URL.Path, Body: body}
		if r.URL.Query().Has("list-type") {
			req.Target += "?list"
		}
		if !t.arrive(&req) {
			cut(w)
			return
		}
		held := &heldAnswer{header: http.Header{}, status: http.StatusOK}
		h.ServeHTTP(held, r)
		if held.cut {
			held.status = 0
		}
		if !t.leave(&req, held.status) || held.cut {
			cut(w)
			return
		}
		maps.Copy(w.Header(), held.header)
		w.WriteHeader(held.status)
		_, _ = w.Write(held.body.Bytes()) // the client may be gone
	})
}

// heldAnswer is an answer that has not been sent yet.
type heldAnswer struct {
	header  http.Header
	started bool
	status  int
	body    bytes.Buffer
	cut     bool
}

// Header implements http.ResponseWriter.
func (a *heldAnswer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *heldAnswer) WriteHeader(status int) {
	if !a.started {
		a.started, a.status = true, status
	}
}

// Write implements http.ResponseWriter.
func (a *heldAnswer) Write(p []byte) (int, error) {
	a.started = true
	return a.body.Write(p)
}

func (t *Tap) dns(h dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		req := Request{Part: PartDNS}
		if len(r.Question) == 1 {
			q := queryOf(w, r)
			req.Op, req.Target = dns.TypeToString[q.Type], q.Name
			if q.Update {
				req.Op = UpdateOp
			}
		}
		if !t.arrive(&req) {
			_ = w.Close()
			return
		}
		held := &heldReply{ResponseWriter: w, tap: t, req: &req}
		h(held, r)
		held.leave(dns.RcodeSuccess) // when it was not answered
	}
}

// heldReply asks the tap before its first message is sent.
type heldReply struct {
	dns.ResponseWriter
	tap  *Tap
	req  *Request
	pass bool
}

func (w *heldReply) leave(rcode int) bool {
	if !w.req.Handled {
		w.pass = w.tap.leave(w.req, rcode)
	}
	return w.pass
}

// WriteMsg implements dns.ResponseWriter.
func (w *heldReply) WriteMsg(m *dns.Msg) error {
	if !w.leave(m.Rcode) {
		return w.Close()
	}
	return w.ResponseWriter.WriteMsg(m)
}
