package acmelab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// LeakedFunction is a goroutine that Pebble starts and never ends, one for each
// CA. A goleak check needs goleak.IgnoreAnyFunction(LeakedFunction).
const LeakedFunction = "github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"

// Paths of the CA, for CA.Requests. A path that ends in a slash counts
// everything below it.
const (
	PathDirectory  = wfe.DirectoryPath
	PathNewAccount = "/sign-me-up"
	PathNewOrder   = "/order-plz"
	PathAuthz      = "/authZ/"
	PathChallenge  = "/chalZ/"
	PathFinalize   = "/finalize-order/"
	PathCert       = "/certZ/"
)

// maxACMERequest bounds the body of a request to the CA.
const maxACMERequest = 1 << 20

// CAOptions are the settings of one CA. The zero value is a quiet, quick one.
type CAOptions struct {
	Addr      string                // to listen on; "" is a free port of 127.0.0.1
	DNS       string                // address of the DNS server that validation asks, over TCP
	HTTPPort  int                   // port of http-01 validation; 0 means 1, where nobody answers
	TLSPort   int                   // port of tls-alpn-01 validation; 0 means 1
	Validity  time.Duration         // of certificates, whole seconds; 0 means Pebble's 90 days
	Profiles  map[string]ca.Profile // nil means one, "default", with Validity
	BadNonces int                   // percentage of good nonces to reject
	Reuse     int                   // percentage of valid authorizations to reuse
	EABKeys   map[string]string     // key id to base64url MAC key; not empty means required
	Blocked   []string              // domains that the CA refuses; Pebble panics at a name with fewer labels above one
	Roots     int                   // alternate chains besides the first
	Strict    bool                  // refuses what ACME leaves open, to warn of what may come
	Sleep     int                   // each validation takes less than so many seconds more; 0 is none

	// Instead, if not nil, may answer a request in place of Pebble, as a load
	// balancer or a rate limit in front of it would; it says whether it did.
	Instead func(w http.ResponseWriter, r *http.Request) (answered bool)

	// Gate, if not nil, is called with the path of each request before it is
	// handled. The request waits until Gate returns; others go on.
	Gate func(path string)

	// Log, if not nil, takes the lines of Pebble's log. It is called from many
	// goroutines, one at a time, and never after Close.
	Log func(line string)
}

// CA is a running Pebble.
//
// Pebble is written to be awkward on purpose. What this type does about it:
//
//   - Its knobs are environment variables, read once when it is built. They are
//     set only while it is, under a lock, so that parallel tests may use
//     different values (testing.T.Setenv forbids t.Parallel).
//   - PEBBLE_VA_NOSLEEP is set: otherwise each validation sleeps up to 4 s,
//     or less than CAOptions.Sleep.
//   - It rejects 5 % of good nonces and reuses half of the valid authorizations
//     by default. Both are 0 here unless CAOptions says otherwise; but even then
//     Pebble reuses 1 % (rand.Intn(100) > 0 is false for one value in 100), so
//     a test may not count on a fresh authorization for a name it had before.
//   - Pebble 2.10.1 deadlocks under parallel requests: the authz handler holds
//     an authorization while it waits for the store, a new order holds the store
//     while it waits for that authorization (wfe.go:2362, memorystore.go:321).
//     So one request is handled at a time; no handler of Pebble waits for
//     another request or for a validation.
//   - An order without a profile gets a random one, so there is one profile
//     unless CAOptions names more.
//   - Keys are ECDSA; RSA keys for root and intermediate cost about a second.
type CA struct {
	Directory  string         // URL of the ACME directory
	Roots      *x509.CertPool // trusts certificates that the CA issues
	RootsPEM   []byte         // the same, for a file
	APICertPEM []byte         // trusts the HTTPS of the directory itself
	Client     *http.Client   // does so too

	front   *front
	cert    *tls.Certificate // of the API
	store   *db.MemoryStore
	inner   http.Handler // Pebble
	logs    *lineLog
	gate    func(string)
	instead func(http.ResponseWriter, *http.Request) bool

	serial sync.Mutex // held while Pebble handles a request

	mu       sync.Mutex
	requests map[string]int
	ordered  [][]string
}

// buildMu guards the environment while a CA is built.
var buildMu sync.Mutex

// StartCA runs a CA. The caller must Close it.
func StartCA(o CAOptions) (*CA, error) {
	if o.Profiles == nil {
		o.Profiles = map[string]ca.Profile{
			"default": {Description: "lab", ValidityPeriod: uint64(max(0, o.Validity/time.Second))},
		}
	}
	c := &CA{
		store: db.NewMemoryStore(), logs: &lineLog{to: o.Log}, gate: o.Gate, instead: o.Instead,
		Roots: x509.NewCertPool(), requests: map[string]int{},
	}
	if err := accountsOf(c.store, func(reflect.Value) {}); err != nil {
		return nil, err
	}
	for id, key := range o.EABKeys {
		if err := c.store.AddExternalAccountKeyByID(id, key); err != nil {
			return nil, fmt.Errorf("acmelab: EAB key %s: %w", id, err)
		}
	}
	for _, name := range o.Blocked {
		if err := c.store.AddBlockedDomain(name); err != nil {
			return nil, fmt.Errorf("acmelab: blocked domain %s: %w", name, err)
		}
	}
	authority, err := c.build(o)
	if err != nil {
		return nil, err
	}
	for i := range authority.GetNumberOfRootCerts() {
		c.RootsPEM = append(c.RootsPEM, authority.GetRootCert(i).PEM()...)
	}
	c.Roots.AppendCertsFromPEM(c.RootsPEM)

	cert, certPEM, err := selfSigned(o.Addr)
	if err != nil {
		return nil, err
	}
	c.cert, c.APICertPEM = cert, certPEM
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(certPEM)
	c.Client = &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust, MinVersion: tls.VersionTLS12}},
	}
	if c.front, err = serve(o.Addr, cert, http.HandlerFunc(c.serveHTTP)); err != nil {
		return nil, err
	}
	c.Directory = c.front.url + PathDirectory
	return c, nil
}

// build makes the parts of Pebble, whose constructors read the environment.
func (c *CA) build(o CAOptions) (*ca.CAImpl, error) {
	buildMu.Lock()
	defer buildMu.Unlock()
	restore, err := setenv(map[string]string{
		"PEBBLE_VA_NOSLEEP":      strconv.FormatBool(o.Sleep == 0),
		"PEBBLE_VA_SLEEPTIME":    strconv.Itoa(o.Sleep),
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(o.BadNonces),
		"PEBBLE_AUTHZREUSE":      strconv.Itoa(o.Reuse),
	})
	defer restore()
	if err != nil {
		return nil, err
	}
	logger := slog.NewLogLogger(c.logs, slog.LevelInfo)
	authority := ca.New(logger, c.store, "", "ecdsa", o.Roots, 1, o.Profiles)
	validator := va.New(logger, max(o.HTTPPort, 1), max(o.TLSPort, 1), false, o.DNS, c.store)
	api := wfe.New(logger, c.store, validator, authority, []string{"lab.test"}, o.Strict, len(o.EABKeys) > 0, 0, 0)
	mux := http.NewServeMux()
	mux.Handle("/", api.Handler())
	mux.Handle("/set-renewal-info/", api.ManagementHandler())
	c.inner = mux
	return authority, nil
}

// Close ends the CA and waits until no request is handled any more.
func (c *CA) Close() error {
	c.Client.CloseIdleConnections()
	err := c.front.close()
	c.serial.Lock() // the last handler
	defer c.serial.Unlock()
	c.logs.stop()
	return err
}

// SetDown takes the CA off the net, or back on it: connections are closed at
// once, open ones too, as if its process had ended.
func (c *CA) SetDown(down bool) { c.front.setDown(down) }

// Orders tells how many orders the CA has accepted (newOrder answered 201).
func (c *CA) Orders() int { return len(c.Ordered()) }

// Ordered lists the names of each accepted order, as the client gave them.
func (c *CA) Ordered() [][]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([][]string(nil), c.ordered...)
}

// Requests counts the requests for path, or for everything below a path that
// ends in a slash.
func (c *CA) Requests(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for p, count := range c.requests {
		if p == path || strings.HasSuffix(path, "/") && strings.HasPrefix(p, path) {
			n += count
		}
	}
	return n
}

// ForgetAccounts makes the CA know no account any more, as when a test CA was
// restarted or an account was lost: requests in their name are answered
// accountDoesNotExist. The roots, orders and certificates stay.
func (c *CA) ForgetAccounts() {
	c.store.Lock()
	defer c.store.Unlock()
	_ = accountsOf(c.store, reflect.Value.Clear) // StartCA has seen that they are there
}

// accountsOf calls f with the two indexes of accounts in Pebble's store, which
// it neither exports nor can empty.
func accountsOf(store *db.MemoryStore, f func(reflect.Value)) error {
	for _, name := range []string{"accountsByID", "accountsByKeyID"} {
		field := reflect.ValueOf(store).Elem().FieldByName(name)
		if field.Kind() != reflect.Map {
			return fmt.Errorf("acmelab: Pebble's store has no map %s (another version of Pebble?)", name)
		}
		f(reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem())
	}
	return nil
}

// SetRenewalInfo makes the CA answer the ARI request (RFC 9773) for a
// certificate, given in PEM, with body, which is not checked and so may be
// malformed on purpose.
func (c *CA) SetRenewalInfo(ctx context.Context, certPEM []byte, body string) error {
	payload, err := json.Marshal(map[string]string{"Certificate": string(certPEM), "ARIResponse": body})
	if err != nil {
		return fmt.Errorf("acmelab: renewal info: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.front.url+"/set-renewal-info/", bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("acmelab: renewal info: %w", err)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		return fmt.Errorf("acmelab: renewal info: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New("acmelab: renewal info: " + resp.Status)
	}
	return nil
}

func (c *CA) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.requests[r.URL.Path]++
	c.mu.Unlock()
	if c.gate != nil {
		c.gate(r.URL.Path)
	}
	if c.instead != nil && c.instead(w, r) {
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxACMERequest))
	if err != nil {
		cut(w)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	seen := &statusWriter{ResponseWriter: w}
	c.handle(seen, r)
	if r.URL.Path == PathNewOrder && seen.status == http.StatusCreated {
		c.mu.Lock()
		c.ordered = append(c.ordered, orderNames(body))
		c.mu.Unlock()
	}
}

// handle has Pebble handle one request at a time.
func (c *CA) handle(w http.ResponseWriter, r *http.Request) {
	c.serial.Lock()
	defer c.serial.Unlock() // also when Pebble panics
	c.inner.ServeHTTP(w, r)
}

// orderNames reads the identifiers out of a newOrder request, a JWS in flat
// form (RFC 8555, section 6.2).
func orderNames(body []byte) []string {
	var jws struct{ Payload string }
	var order struct{ Identifiers []struct{ Value string } }
	if json.Unmarshal(body, &jws) != nil {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(jws.Payload)
	if err != nil || json.Unmarshal(payload, &order) != nil {
		return nil
	}
	names := make([]string, 0, len(order.Identifiers))
	for _, id := range order.Identifiers {
		names = append(names, id.Value)
	}
	return names
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// setenv sets variables; restore, never nil, puts the old values back.
func setenv(vars map[string]string) (restore func(), err error) {
	var undo []func()
	restore = func() {
		for _, f := range undo {
			f()
		}
	}
	for k, v := range vars {
		old, had := os.LookupEnv(k)
		undo = append(undo, func() {
			if had {
				_ = os.Setenv(k, old)
			} else {
				_ = os.Unsetenv(k)
			}
		})
		if err := os.Setenv(k, v); err != nil {
			return restore, fmt.Errorf("acmelab: %w", err)
		}
	}
	return restore, nil
}

// lineLog is a slog.Handler that hands on messages and can be cut off: Pebble's
// goroutines go on for a moment after the last request.
type lineLog struct {
	mu sync.Mutex
	to func(line string)
}

// Enabled implements slog.Handler.
func (l *lineLog) Enabled(context.Context, slog.Level) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to != nil
}

// Handle implements slog.Handler.
func (l *lineLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to != nil {
		l.to(r.Message)
	}
	return nil
}

// WithAttrs implements slog.Handler; Pebble logs no attributes.
func (l *lineLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *lineLog) WithGroup(string) slog.Handler { return l }

func (l *lineLog) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = nil
}
