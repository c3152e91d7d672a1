package acmelab_test

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/libdns/libdns"
	"github.com/libdns/rfc2136"
	"github.com/miekg/dns"

	"edge/internal/acmelab"
)

// seen collects what passes a tap.
type seen struct {
	mu   sync.Mutex
	all  []acmelab.Request
	stop func(acmelab.Request) (pass bool)
}

func (s *seen) hook(r acmelab.Request) bool {
	s.mu.Lock()
	s.all = append(s.all, r)
	s.mu.Unlock()
	return s.stop == nil || s.stop(r)
}

func (s *seen) list() (lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.all {
		lines = append(lines, r.String())
	}
	return lines
}

// last is the last call.
func (s *seen) last() acmelab.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[len(s.all)-1]
}

// ways are clients of a lab by way of a tap.
type ways struct {
	*acmelab.Tap
	lab *acmelab.Lab
	dns *rfc2136.Provider
	s3  *s3.Client
	ca  *http.Client
}

func tapped(t *testing.T, o acmelab.TapOptions) ways {
	t.Helper()
	lab := acmelab.New(t, acmelab.Options{})
	tap := acmelab.NewTap(t, lab, o)
	p := rfc2136Provider(lab.DNS)
	p.Server = tap.DNS
	store := s3.New(lab.S3.Client.Options(), func(o *s3.Options) {
		o.BaseEndpoint, o.RetryMaxAttempts = aws.String(tap.S3), 1
	})
	transport := lab.CA.Client.Transport.(*http.Transport).Clone() //nolint:forcetypeassert // it is the lab's
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, tap.CA)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return ways{tap, lab, p, store, &http.Client{Transport: transport}}
}

func (w ways) put(t *testing.T, key string) error {
	t.Helper()
	_, err := w.s3.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("certs"), Key: aws.String(key), Body: strings.NewReader("v")})
	return err
}

func (w ways) exists(t *testing.T, key string) bool {
	t.Helper()
	_, err := w.lab.S3.Client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("certs"), Key: aws.String(key)})
	return err == nil
}

func (w ways) update(t *testing.T) error {
	t.Helper()
	_, err := w.dns.AppendRecords(t.Context(), "example.test.", []libdns.Record{libdns.TXT{Name: "a", Text: "x", TTL: time.Minute}})
	return err
}

func (w ways) directory(t *testing.T) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.lab.CA.Directory, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.ca.Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	return resp, err
}

func TestTapNumbersRequestsToAllPartsInOneSequence(t *testing.T) {
	t.Parallel()
	var s seen
	w := tapped(t, acmelab.TapOptions{Hook: s.hook, Skip: func(r acmelab.Request) bool { return r.Target == "/certs/skipped" }})
	if _, err := w.directory(t); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.put(t, "k"), w.put(t, "skipped"), w.update(t)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := new(dns.Client).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("a.example.test.", dns.TypeTXT), w.DNS); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"before 1: ca GET /dir", "after 1: ca GET /dir",
		"before 2: s3 PUT /certs/k", "after 2: s3 PUT /certs/k",
		"before 0: s3 PUT /certs/skipped", "after 0: s3 PUT /certs/skipped",
		"before 3: dns UPDATE example.test.", "after 3: dns UPDATE example.test.",
		"before 4: dns TXT a.example.test.", "after 4: dns TXT a.example.test.",
	}
	if got := s.list(); !slices.Equal(got, want) || w.Count() != 4 {
		t.Errorf("%d numbers, got\n%s\nwant\n%s", w.Count(), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := w.put(t, "k"); err != nil {
		t.Fatal(err)
	}
	if r := s.last(); r.Status != http.StatusOK || string(r.Body) != "v" {
		t.Errorf("status %d, body %q", r.Status, r.Body)
	}
}

// What is not given the addresses of a tap does not pass it.
func TestOthersPassBesideATap(t *testing.T) {
	t.Parallel()
	var s seen
	w := tapped(t, acmelab.TapOptions{Hook: s.hook})
	acmeWay := acmeClient(w.lab.CA, rfc2136Provider(w.lab.DNS), "example.test.")
	obtain(t, w.lab.CA, acmeWay, account(t, acmeWay), "a.example.test")
	if got := s.list(); len(got) > 0 {
		t.Errorf("seen: %v", got)
	}
}

// A whole order by way of a tap: the CA's URLs stay, and the order is the lab's.
func TestOrderPassesATap(t *testing.T) {
	t.Parallel()
	var s seen
	w := tapped(t, acmelab.TapOptions{Hook: s.hook})
	c := acmeClient(w.lab.CA, w.dns, "example.test.")
	c.HTTPClient = w.ca
	obtain(t, w.lab.CA, c, account(t, c), "a.example.test")
	paths := strings.Join(s.list(), "\n")
	for _, part := range []string{acmelab.PathNewAccount, acmelab.PathNewOrder, acmelab.PathChallenge, acmelab.PathFinalize, acmelab.PathCert, "UPDATE"} {
		if !strings.Contains(paths, part) {
			t.Errorf("%s did not pass:\n%s", part, paths)
		}
	}
	if w.lab.CA.Orders() != 1 {
		t.Errorf("%d orders", w.lab.CA.Orders())
	}
}

func TestTapCutsBeforeOrAfterTheEffect(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		s := seen{stop: func(r acmelab.Request) bool { return r.Handled != after }}
		w := tapped(t, acmelab.TapOptions{Hook: s.hook})
		if err := w.put(t, "k"); err == nil {
			t.Errorf("after %t: a PUT was answered", after)
		}
		if got := w.exists(t, "k"); got != after {
			t.Errorf("after %t: the object exists: %t", after, got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := w.dns.AppendRecords(ctx, "example.test.", []libdns.Record{libdns.TXT{Name: "a", Text: "x", TTL: time.Minute}}); err == nil {
			t.Errorf("after %t: an update was answered", after)
		}
		if got := len(w.lab.DNS.TXT("a.example.test")) > 0; got != after {
			t.Errorf("after %t: the record exists: %t", after, got)
		}
		if _, err := w.directory(t); err == nil {
			t.Errorf("after %t: the CA answered", after)
		}
	}
}

// A request that waits in a hook holds up no other.
func TestTapHoldsOneRequest(t *testing.T) {
	t.Parallel()
	reached, release := make(chan struct{}), make(chan struct{})
	s := seen{stop: func(r acmelab.Request) bool {
		if r.Target == "/certs/held" && r.Handled {
			close(reached)
			<-release
		}
		return true
	}}
	w := tapped(t, acmelab.TapOptions{Hook: s.hook})
	done := make(chan error, 1)
	go func() { done <- w.put(t, "held") }()
	<-reached
	if !w.exists(t, "held") {
		t.Error("held before its effect")
	}
	if err := w.put(t, "other"); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		t.Errorf("answered while held: %v", err)
	default:
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestScriptedFaultsWorkBehindATap(t *testing.T) {
	t.Parallel()
	var s seen
	w := tapped(t, acmelab.TapOptions{Hook: s.hook})
	for fault, status := range map[int]int{http.StatusServiceUnavailable: http.StatusServiceUnavailable, acmelab.Cut: 0, acmelab.Lose: 0} {
		w.lab.S3.SetFail(func(*http.Request) int { return fault })
		if err := w.put(t, "k"); err == nil {
			t.Errorf("%d: no error", fault)
		}
		if got := s.last(); !got.Handled || got.Status != status {
			t.Errorf("%d: seen %v with status %d, want %d", fault, got, got.Status, status)
		}
	}
	w.lab.DNS.SetFault(func(acmelab.Query) (int, bool) { return dns.RcodeRefused, true })
	if err := w.update(t); err == nil {
		t.Error("an update that is refused succeeded")
	}
	if got := s.last(); got.Status != dns.RcodeRefused {
		t.Errorf("response code %d", got.Status)
	}
}

func TestTapGivesTheURLOfAStore(t *testing.T) {
	t.Parallel()
	w := tapped(t, acmelab.TapOptions{})
	direct, by := w.lab.S3.StoreURL("certs", "p"), w.StoreURL("certs", "p")
	if direct == by || !strings.Contains(by, strings.TrimPrefix(w.S3, "http://127.0.0.1:")) {
		t.Errorf("got %s", by)
	}
}
