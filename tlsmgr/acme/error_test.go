package acme_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestRejectedNamesAreNamed(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{Blocked: []string{"bad.example.test"}}, nil)
	_, err := l.NewOrder(t.Context(), l.register(t), acme.Request{Names: []string{"good.example.test", "bad.example.test"}})
	e := refused(t, err, acme.Rejected, "place the order", "rejectedIdentifier", "remove it")
	if len(e.Names) != 1 || e.Names["bad.example.test"] != "rejectedIdentifier: bad.example.test is a forbidden domain" {
		t.Errorf("names %q, want bad.example.test alone", e.Names)
	}
}

// problem answers like the front of a CA. The bodies are Boulder's.
func problem(status int, header, body string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/problem+json")
		if header != "" {
			w.Header().Set("Retry-After", header)
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, body)
	}
}

const acmeError = `{"type":"urn:ietf:params:acme:error:`

func TestRefusalsOfAnOrderAreClassified(t *testing.T) {
	t.Parallel()
	soon := time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)
	sub := func(kind, name string) string {
		return acmeError + kind + `","detail":"because of ` + name + `","identifier":{"type":"dns","value":"` + name + `"}}`
	}
	for name, c := range map[string]struct {
		answer  func(http.ResponseWriter)
		kind    acme.Kind
		words   string
		refused []string
		min     time.Duration // of RetryAfter, which is at most a minute more
	}{
		"rate limit in seconds": {
			problem(429, "3600", acmeError+`rateLimited","detail":"too many certificates (50) already issued"}`),
			acme.RateLimited, "edge waits as long as the CA says", nil, time.Hour,
		},
		"rate limit until a date": {problem(429, soon, acmeError+`rateLimited","detail":"too many new orders"}`), acme.RateLimited, "too many new orders", nil, 59 * time.Minute},
		"rate limit for a year":   {problem(429, "31536000", acmeError+`rateLimited"}`), acme.RateLimited, "rateLimited", nil, 24 * time.Hour},
		"rate limit of a load balancer": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "120")
			http.Error(w, "<html>slow down</html>", http.StatusTooManyRequests)
		}, acme.RateLimited, "HTTP 429", nil, 2 * time.Minute},
		"busy": {problem(503, "60", acmeError+`serverInternal","detail":"Service busy; retry later."}`), acme.ServerError, "status page", nil, time.Minute},
		"bad gateway": {func(w http.ResponseWriter) {
			http.Error(w, strings.Repeat("<html>\n", 1000), http.StatusBadGateway)
		}, acme.ServerError, "HTTP 502", nil, 0},
		"names that nobody asked for": {
			problem(400, "", acmeError+`rejectedIdentifier","detail":"no","subproblems":[`+sub("rejectedIdentifier", "x.test")+`]}`),
			acme.Rejected, "x.test", nil, 0,
		},
		"a wildcard without its star": {
			problem(403, "", acmeError+`caa","detail":"no","subproblems":[`+sub("caa", "b.example.test")+`]}`),
			acme.CAA, "b.example.test",
			[]string{"*.b.example.test"},
			0,
		},
		"several names": {
			problem(400, "", acmeError+`rejectedIdentifier","detail":"Cannot issue for a.example.test","subproblems":[`+sub("rejectedIdentifier", "a.example.test")+`,`+sub("rejectedIdentifier", "*.B.example.test")+`]}`),
			acme.Rejected, "a.example.test",
			[]string{"a.example.test", "*.b.example.test"},
			0,
		},
		"malformed names": {
			problem(400, "", acmeError+`malformed","detail":"Cannot issue","subproblems":[`+sub("malformed", "a.example.test")+`]}`),
			acme.Rejected, "malformed",
			[]string{"a.example.test"},
			0,
		},
		"a name in the text only": {
			problem(400, "", acmeError+`rejectedIdentifier","detail":"Cannot issue for \"*.b.example.test\": policy forbids. Not a.example.test.evil."}`),
			acme.Rejected, "policy forbids",
			[]string{"*.b.example.test"},
			0,
		},
		"a compound that agrees": {
			problem(400, "", acmeError+`compound","detail":"several","subproblems":[`+sub("caa", "a.example.test")+`]}`),
			acme.CAA, "forbids this CA",
			[]string{"a.example.test"},
			0,
		},
		"a compound that does not": {
			problem(400, "", acmeError+`compound","detail":"several","subproblems":[`+sub("caa", "a.example.test")+`,`+sub("dns", "*.b.example.test")+`]}`),
			acme.Other, "several",
			[]string{"a.example.test", "*.b.example.test"},
			0,
		},
		"deactivated account": {
			problem(403, "", acmeError+`unauthorized","detail":"Account is not valid, has status \"deactivated\""}`),
			acme.BadRequest, "deactivated, or does this belong", nil, 0,
		},
		"new terms":        {problem(403, "", acmeError+`userActionRequired","detail":"see https://ca.test/tos"}`), acme.BadRequest, "accept new terms", nil, 0},
		"unknown problem":  {problem(400, "", `{"type":"about:blank","title":"No","detail":"x"}`), acme.BadRequest, "about:blank: x", nil, 0},
		"bad problem JSON": {problem(500, "", "no JSON"), acme.ServerError, "HTTP 500", nil, 0},
		"very long": {
			problem(400, "", acmeError+`malformed","detail":"`+strings.Repeat("long words ", 1000)+`"}`),
			acme.BadRequest, "malformed: long words", nil, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t, acmelab.CAOptions{Instead: func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != acmelab.PathNewOrder {
					return false
				}
				c.answer(w)
				return true
			}}, nil)
			_, err := l.NewOrder(t.Context(), l.register(t), acme.Request{Names: []string{"a.example.test", "*.b.example.test"}})
			e := refused(t, err, c.kind, "place the order: ", c.words)
			if len(e.Names) != len(c.refused) {
				t.Errorf("names %q, want %q", e.Names, c.refused)
			}
			for _, n := range c.refused {
				if e.Names[n] == "" {
					t.Errorf("names %q, want %q", e.Names, c.refused)
				}
			}
			if e.RetryAfter < c.min || e.RetryAfter > c.min+time.Minute || c.min == 0 && e.RetryAfter != 0 {
				t.Errorf("retry after %v, want %v", e.RetryAfter, c.min)
			}
		})
	}
}

func TestForbiddenByCAAAtTheLastMoment(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{Instead: func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, acmelab.PathFinalize) {
			return false
		}
		problem(403, "", acmeError+`caa","detail":"Error finalizing order :: Rechecking CAA for \"a.example.test\" and 0 more identifiers failed"}`)(w)
		return true
	}}, nil)
	o := order(t, l.CA, l.register(t), "a.example.test", "b.example.test")
	l.prove(t, o)
	der, _ := csr(t, "a.example.test", "b.example.test")
	e := refused(t, o.Finalize(t.Context(), der), acme.CAA, "finalize the order", "a CAA record")
	if len(e.Names) != 1 || e.Names["a.example.test"] == "" {
		t.Errorf("names %q, want a.example.test", e.Names)
	}
}

func TestCAThatIsAwayIsUnreachable(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	l.pebble.SetDown(true)
	_, err := l.NewOrder(t.Context(), a, acme.Request{Names: []string{"a.example.test"}})
	refused(t, err, acme.Unreachable, "place the order: cannot reach 127.0.0.1:", "issuers.lab.acme.directory")
	_, err = l.another(t, nil).Meta(t.Context())
	refused(t, err, acme.Unreachable, "read the directory: cannot reach")
	l.pebble.SetDown(false)
	order(t, l.CA, a, "a.example.test")
}

func TestCAFileIsTrustedAndNothingElse(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	ca, err := acme.New(l.issuer, acme.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Register(t.Context(), nil); err != nil {
		t.Errorf("with the CA file: %v", err)
	}
	l.issuer.CA = ""
	if ca, err = acme.New(l.issuer, acme.Options{}); err != nil {
		t.Fatal(err)
	}
	began := l.pebble.Requests(acmelab.PathDirectory)
	_, err = ca.Register(t.Context(), nil)
	refused(t, err, acme.Unreachable, "is not trusted", "set issuers.lab.acme.ca to a PEM file")
	if l.pebble.Requests(acmelab.PathDirectory) != began {
		t.Error("a request went to a CA that is not trusted")
	}
}

// serve is a CA that is none.
func serve(t *testing.T, h http.HandlerFunc) *acme.CA {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return at(t, s.URL+"/directory", s.Client())
}

func at(t *testing.T, directory string, client *http.Client) *acme.CA {
	t.Helper()
	ca, err := acme.New(&config.Issuer{Name: "odd", Directory: directory}, acme.Options{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestWhatIsNoCAIsSaidToBe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   acme.Kind
		words  string
	}{
		"web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = fmt.Fprint(w, "<html>\r\nwelcome")
		}, acme.Unreachable, "text/html instead of JSON (does issuers.odd.acme.directory lead to an ACME server?)"},
		"other JSON":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"a":1}`) }, acme.Unreachable, "not an ACME directory"},
		"not found":   {http.NotFound, acme.Unreachable, "HTTP 404"},
		"unavailable": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", http.StatusServiceUnavailable) }, acme.ServerError, "HTTP 503"},
		"a problem":   {func(w http.ResponseWriter, _ *http.Request) { problem(429, "60", acmeError+`rateLimited"}`)(w) }, acme.RateLimited, "rateLimited"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for {
				if _, err := fmt.Fprint(w, strings.Repeat(" ", 64<<10)); err != nil {
					return
				}
			}
		}, acme.Unreachable, "larger than 1024 KiB"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = fmt.Fprint(w, "{")
		}, acme.Unreachable, "connection closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := serve(t, c.answer).Profile(t.Context())
			refused(t, err, c.kind, "read the directory: ", c.words)
		})
	}
}

func TestAnswersOtherThanJSONLaterAreRefusedToo(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"web page": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = fmt.Fprint(w, "<html>")
		},
		"endless": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprint(w, strings.Repeat(" ", 2<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t, acmelab.CAOptions{Instead: func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != acmelab.PathNewOrder {
					return false
				}
				answer(w)
				return true
			}}, nil)
			_, err := l.NewOrder(t.Context(), l.register(t), acme.Request{Names: []string{"a.example.test"}})
			refused(t, err, acme.ServerError, "place the order: the answer of 127.0.0.1:")
		})
	}
}

func TestSilentCAEndsWithTheCallersDeadline(t *testing.T) {
	t.Parallel()
	open := make(chan struct{})
	ca := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-open:
		case <-r.Context().Done():
		}
	})
	defer close(open)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := ca.Meta(ctx)
	refused(t, err, acme.Unreachable, "timeout")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not the deadline", err)
	}
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	if _, err := ca.Meta(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the caller's own doing", err)
	}
}

func TestAddressesThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	_, err = at(t, "http://"+ln.Addr().String(), new(http.Client)).Meta(t.Context())
	refused(t, err, acme.Unreachable, "connection refused", "issuers.odd.acme.directory")

	lookup := through(func(*http.Request) (*http.Response, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "ca.invalid", IsNotFound: true}
	})
	_, err = at(t, "https://ca.invalid/dir", &http.Client{Transport: lookup}).Meta(t.Context())
	refused(t, err, acme.Unreachable, "cannot reach ca.invalid: host name not found")
}

func TestExpiredCertificateOfTheCAIsNotAMatterOfTrust(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().AddDate(-2, 0, 0), NotAfter: time.Now().AddDate(-1, 0, 0),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	_, err = at(t, s.URL, client).Meta(t.Context())
	refused(t, err, acme.Unreachable, "is not valid", "expired", "clock")
}
