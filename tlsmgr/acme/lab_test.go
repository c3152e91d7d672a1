package acme_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmelab.LeakedFunction))
}

// lab is Pebble, the DNS that it asks, and a CA of ours that speaks to it.
type lab struct {
	*acme.CA
	pebble *acmelab.CA
	dns    *acmelab.DNS
	issuer *config.Issuer
	client *http.Client // trusts Pebble and nobody else
}

// start runs Pebble with o. change, if not nil, edits the issuer before it is
// used.
func start(t *testing.T, o acmelab.CAOptions, change func(*config.Issuer)) *lab {
	t.Helper()
	ns := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}})
	o.DNS = ns.Addr
	pebble := acmelab.NewCA(t, o)
	l := &lab{pebble: pebble, dns: ns, issuer: issuerOf(t, pebble), client: pebble.Client}
	if change != nil {
		change(l.issuer)
	}
	l.CA = l.another(t, nil)
	return l
}

// issuerOf is what routes.yaml would say about a CA.
func issuerOf(t *testing.T, pebble *acmelab.CA) *config.Issuer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pebble.APICertPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return &config.Issuer{Name: "lab", Directory: pebble.Directory, Email: "lab@example.test", CA: file}
}

// another is a second CA of ours at the same Pebble, as of another replica. via,
// if not nil, is what its requests go through.
func (l *lab) another(t *testing.T, via func(http.RoundTripper) http.RoundTripper) *acme.CA {
	t.Helper()
	client := *l.client
	if via != nil {
		client.Transport = via(client.Transport)
	}
	ca, err := acme.New(l.issuer, acme.Options{HTTPClient: &client, Version: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (l *lab) register(t *testing.T) *acme.Account {
	t.Helper()
	a, err := l.Register(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func order(t *testing.T, ca *acme.CA, a *acme.Account, names ...string) *acme.Order {
	t.Helper()
	o, err := ca.NewOrder(t.Context(), a, acme.Request{Names: names})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// prove puts the records of o's proofs into the DNS and has them validated.
func (l *lab) prove(t *testing.T, o *acme.Order) {
	t.Helper()
	proofs := l.present(t, o)
	if err := o.Validate(t.Context(), proofs, config.DNS01); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) present(t *testing.T, o *acme.Order) []acme.Proof {
	t.Helper()
	proofs, err := o.Proofs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range proofs {
		c := p.Challenges[config.DNS01]
		if err := l.dns.Add(c.DNSName + `. 1 IN TXT "` + c.DNSValue + `"`); err != nil {
			t.Fatal(err)
		}
	}
	return proofs
}

// csr is a certificate request of a fresh key.
func csr(t *testing.T, names ...string) ([]byte, crypto.Signer) {
	t.Helper()
	key, err := acme.NewKey(config.P256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := acme.NewCSR(names, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// issued is a certificate and everything that it came from.
type issued struct {
	account *acme.Account
	order   *acme.Order
	chain   string
	leaf    *x509.Certificate
	key     crypto.Signer
}

// obtain does it all.
func (l *lab) obtain(t *testing.T, a *acme.Account, r acme.Request) issued {
	t.Helper()
	o, err := l.NewOrder(t.Context(), a, r)
	if err != nil {
		t.Fatal(err)
	}
	l.prove(t, o)
	der, key := csr(t, r.Names...)
	if err := o.Finalize(t.Context(), der); err != nil {
		t.Fatal(err)
	}
	chain, err := o.Chain(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return issued{account: a, order: o, chain: chain, leaf: leafOf(t, chain), key: key}
}

func leafOf(t *testing.T, chain string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		t.Fatalf("no certificate in %q", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// refused makes sure that err is an *Error of a kind that says all of words, in
// one line.
func refused(t *testing.T, err error, kind acme.Kind, words ...string) *acme.Error {
	t.Helper()
	e, ok := errors.AsType[*acme.Error](err)
	if !ok {
		t.Fatalf("got %v (%T), want an *acme.Error", err, err)
	}
	if e.Kind != kind {
		t.Errorf("kind %q, want %q: %v", e.Kind, kind, e)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("%q does not say %q", e, w)
		}
	}
	if strings.ContainsAny(e.Error(), "\r\n") || len(e.Error()) > 1100 {
		t.Errorf("not one short line: %q", e)
	}
	return e
}

// through is a transport of a function.
type through func(*http.Request) (*http.Response, error)

func (f through) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// log keeps the requests that pass, as "METHOD path".
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) via(next http.RoundTripper) http.RoundTripper {
	return through(func(req *http.Request) (*http.Response, error) {
		l.mu.Lock()
		l.lines = append(l.lines, req.Method+" "+req.URL.Path)
		l.mu.Unlock()
		return next.RoundTrip(req)
	})
}

func (l *log) count(prefix string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// rewritten is resp with its body changed.
func rewritten(t *testing.T, resp *http.Response, f func(string) string) *http.Response {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Error(err)
	}
	resp.Body = io.NopCloser(bytes.NewReader([]byte(f(string(body)))))
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
	return resp
}
