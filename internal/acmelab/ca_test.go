package acmelab_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/libdns/rfc2136"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"

	"edge/internal/acmelab"
)

// provider is the part of libdns that a DNS-01 solver needs.
type provider interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// solver answers DNS-01 challenges through a libdns provider. It deletes
// exactly the value it added: an apex and its wildcard share one name.
type solver struct {
	dns   provider
	zones []string
}

func (s solver) record(ch acme.Challenge) (zone string, recs []libdns.Record) {
	fqdn := ch.DNS01TXTRecordName() + "."
	zone = s.zones[slices.IndexFunc(s.zones, func(z string) bool { return strings.HasSuffix(fqdn, "."+z) })]
	return zone, []libdns.Record{libdns.TXT{Name: libdns.RelativeName(fqdn, zone), Text: ch.DNS01KeyAuthorization(), TTL: time.Second}}
}

func (s solver) Present(ctx context.Context, ch acme.Challenge) error {
	zone, recs := s.record(ch)
	_, err := s.dns.AppendRecords(ctx, zone, recs)
	return err
}

func (s solver) CleanUp(ctx context.Context, ch acme.Challenge) error {
	zone, recs := s.record(ch)
	_, err := s.dns.DeleteRecords(ctx, zone, recs)
	return err
}

func rfc2136Provider(ns *acmelab.DNS) *rfc2136.Provider {
	return &rfc2136.Provider{Server: ns.Addr, KeyName: ns.Key.Name, KeyAlg: ns.Key.Alg, Key: ns.Key.Secret}
}

// acmeClient is an ACME client of ca that solves challenges with p.
func acmeClient(ca *acmelab.CA, p provider, zones ...string) *acmez.Client {
	return &acmez.Client{
		Client: &acme.Client{
			Directory:    ca.Directory,
			HTTPClient:   ca.Client,
			PollInterval: 20 * time.Millisecond, // 250 ms by default
			Logger:       slog.New(slog.DiscardHandler),
		},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeDNS01: solver{p, zones}},
	}
}

// lab is a DNS server with two zones, a CA that asks it, and an ACME client.
func lab(tb testing.TB, o acmelab.CAOptions) (*acmelab.DNS, *acmelab.CA, *acmez.Client) {
	tb.Helper()
	zones := []string{"example.test.", "other.test."}
	ns := acmelab.NewDNS(tb, acmelab.DNSOptions{Zones: zones})
	o.DNS = ns.Addr
	ca := acmelab.NewCA(tb, o)
	return ns, ca, acmeClient(ca, rfc2136Provider(ns), zones...)
}

func key(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func account(tb testing.TB, c *acmez.Client) acme.Account {
	tb.Helper()
	acct, err := c.NewAccount(tb.Context(), acme.Account{
		Contact: []string{"mailto:lab@example.test"}, TermsOfServiceAgreed: true, PrivateKey: key(tb),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return acct
}

func obtain(tb testing.TB, ca *acmelab.CA, c *acmez.Client, acct acme.Account, names ...string) (acme.Certificate, *x509.Certificate) {
	tb.Helper()
	certs, err := c.ObtainCertificateForSANs(tb.Context(), acct, key(tb), names)
	if err != nil {
		tb.Fatal(err)
	}
	block, rest := pem.Decode(certs[0].ChainPEM)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	inter := x509.NewCertPool()
	inter.AppendCertsFromPEM(rest)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootsPEM)
	for _, n := range names {
		probe := strings.Replace(n, "*", "any", 1)
		for _, pool := range []*x509.CertPool{ca.Roots, roots} {
			if _, err := leaf.Verify(x509.VerifyOptions{DNSName: probe, Roots: pool, Intermediates: inter}); err != nil {
				tb.Errorf("%s: %v", probe, err)
			}
		}
	}
	return certs[0], leaf
}

func TestOneOrderCoversApexWildcardAndAnotherZone(t *testing.T) {
	t.Parallel()
	ns, ca, client := lab(t, acmelab.CAOptions{Validity: 30 * time.Second})
	names := []string{"*.example.test", "a.other.test", "example.test"}
	_, leaf := obtain(t, ca, client, account(t, client), names...)

	if got := slices.Sorted(slices.Values(leaf.DNSNames)); !slices.Equal(got, names) {
		t.Errorf("names %q, want %q", got, names)
	}
	if got := leaf.NotAfter.Sub(leaf.NotBefore); got < 28*time.Second || got > 30*time.Second {
		t.Errorf("certificate is valid for %v, want 30 s", got)
	}
	if txt := ns.TXTNames(); len(txt) != 0 {
		t.Errorf("challenge records left behind: %q", txt)
	}
	if _, updates := ns.Counts(); updates != 6 {
		t.Errorf("%d DNS updates, want 6 (3 added, 3 deleted)", updates)
	}
	if got := ca.Ordered(); len(got) != 1 || !slices.Equal(slices.Sorted(slices.Values(got[0])), names) {
		t.Errorf("ordered %q, want %q once", got, names)
	}
	for path, want := range map[string]int{
		acmelab.PathNewAccount: 1, acmelab.PathNewOrder: 1, acmelab.PathFinalize: 1, acmelab.PathCert: 1, "/none": 0,
	} {
		if got := ca.Requests(path); got != want {
			t.Errorf("%d requests of %s, want %d", got, path, want)
		}
	}
}

func TestBadNoncesOnlyMakeItSlower(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{BadNonces: 20})
	obtain(t, ca, client, account(t, client), "a.example.test")
}

func TestStrictCAIssuesToThoseWhoKeepTheRules(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{Strict: true})
	acct := account(t, client)
	obtain(t, ca, client, acct, "a.example.test")
	order, err := client.NewOrder(t.Context(), acct, acme.Order{Identifiers: []acme.Identifier{{Type: "dns", Value: "b.example.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	authz, err := client.GetAuthorization(t.Context(), acct, order.Authorizations[0])
	if err != nil {
		t.Fatal(err)
	}
	ch := authz.Challenges[0]
	ch.Payload = map[string]string{"more": "than asked for"}
	if _, err := client.InitiateChallenge(t.Context(), acct, ch); err == nil {
		t.Error("a challenge with more than {} was accepted")
	}
}

func TestValidationTakesTimeWhenAskedTo(t *testing.T) {
	t.Parallel()
	slept := make(chan struct{}, 100)
	_, ca, client := lab(t, acmelab.CAOptions{Sleep: 2, Log: func(line string) {
		if strings.HasPrefix(line, "Sleeping for ") {
			slept <- struct{}{}
		}
	}})
	obtain(t, ca, client, account(t, client), "a.example.test")
	select {
	case <-slept:
	default:
		t.Error("no validation took its time")
	}
}

func TestRequestsCanBeAnsweredForTheCA(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{Instead: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != acmelab.PathNewOrder {
			return false
		}
		http.Error(w, "not today", http.StatusTooManyRequests)
		return true
	}})
	_, err := client.ObtainCertificateForSANs(t.Context(), account(t, client), key(t), []string{"a.example.test"})
	if err == nil || !strings.Contains(err.Error(), "not today") {
		t.Errorf("got %v, want what was said for the CA", err)
	}
	if ca.Orders() != 0 || ca.Requests(acmelab.PathNewOrder) == 0 {
		t.Errorf("%d orders of %d requests, want none of some", ca.Orders(), ca.Requests(acmelab.PathNewOrder))
	}
}

func TestManyOrdersAtOnce(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{})
	acct := account(t, client)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			names := []string{fmt.Sprintf("p%d.example.test", i), fmt.Sprintf("*.p%d.example.test", i)}
			if _, err := client.ObtainCertificateForSANs(t.Context(), acct, key(t), names); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := ca.Orders(); got != 6 {
		t.Errorf("%d orders, want 6", got)
	}
}

func TestBrokenDNSFailsTheOrder(t *testing.T) {
	t.Parallel()
	ns, _, client := lab(t, acmelab.CAOptions{})
	ns.SetFault(func(q acmelab.Query) (int, bool) { return dns.RcodeServerFailure, !q.Update })
	_, err := client.ObtainCertificateForSANs(t.Context(), account(t, client), key(t), []string{"example.test"})
	if problem, ok := errors.AsType[acme.Problem](err); !ok || problem.Type != acme.ProblemTypeDNS && problem.Type != acme.ProblemTypeUnauthorized {
		t.Errorf("got %v, want a problem with DNS", err)
	}
}

func TestRefusedNameIsRejected(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{Blocked: []string{"bad.example.test"}})
	_, err := client.ObtainCertificateForSANs(t.Context(), account(t, client), key(t), []string{"bad.example.test"})
	if problem, ok := errors.AsType[acme.Problem](err); !ok || problem.Type != acme.ProblemTypeRejectedIdentifier {
		t.Errorf("got %v, want %s", err, acme.ProblemTypeRejectedIdentifier)
	}
	if got := ca.Orders(); got != 0 {
		t.Errorf("%d orders were accepted, want 0", got)
	}
}

func TestRenewalInfoIsWhatTheTestSet(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{})
	cert, leaf := obtain(t, ca, client, account(t, client), "ari.example.test")
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	body := fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q}}`, at.Format(time.RFC3339), at.Add(time.Hour).Format(time.RFC3339))
	if err := ca.SetRenewalInfo(t.Context(), cert.ChainPEM, body); err != nil {
		t.Fatal(err)
	}
	info, err := client.GetRenewalInfo(t.Context(), leaf)
	if err != nil {
		t.Fatal(err)
	}
	if !info.SuggestedWindow.Start.Equal(at) {
		t.Errorf("window starts %v, want %v", info.SuggestedWindow.Start, at)
	}
	if err := ca.SetRenewalInfo(t.Context(), []byte("no PEM"), body); err == nil {
		t.Error("renewal info for no certificate was accepted")
	}
}

func TestExternalAccountBindingIsRequired(t *testing.T) {
	t.Parallel()
	const mac = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	_, _, client := lab(t, acmelab.CAOptions{EABKeys: map[string]string{"kid-1": mac}})
	acct := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key(t)}
	if _, err := client.NewAccount(t.Context(), acct); err == nil {
		t.Error("an account without a binding was accepted")
	}
	if err := acct.SetExternalAccountBinding(t.Context(), client.Client, acme.EAB{KeyID: "kid-1", MACKey: mac}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.NewAccount(t.Context(), acct); err != nil {
		t.Error(err)
	}
}

func TestForgottenAccountDoesNotExistAndCanBeMadeAgain(t *testing.T) {
	t.Parallel()
	_, ca, client := lab(t, acmelab.CAOptions{})
	acct := account(t, client)
	_, before := obtain(t, ca, client, acct, "one.example.test")
	ca.ForgetAccounts()

	_, err := client.ObtainCertificateForSANs(t.Context(), acct, key(t), []string{"two.example.test"})
	if problem, ok := errors.AsType[acme.Problem](err); !ok || problem.Type != acme.ProblemTypeAccountDoesNotExist {
		t.Errorf("got %v, want %s", err, acme.ProblemTypeAccountDoesNotExist)
	}
	again, err := client.NewAccount(t.Context(), acme.Account{TermsOfServiceAgreed: true, PrivateKey: acct.PrivateKey})
	if err != nil {
		t.Fatal(err)
	}
	if again.Location == acct.Location {
		t.Errorf("the new account has the old location %s", acct.Location)
	}
	_, after := obtain(t, ca, client, again, "two.example.test")
	if before.Issuer.String() != after.Issuer.String() {
		t.Errorf("issuer %s, want %s as before", after.Issuer, before.Issuer)
	}
}

func TestCAThatIsDownComesBack(t *testing.T) {
	t.Parallel()
	ca := acmelab.NewCA(t, acmelab.CAOptions{})
	for _, down := range []bool{false, true, false} {
		ca.SetDown(down)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ca.Directory, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := ca.Client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if got := err != nil; got != down {
			t.Errorf("down is %v, error %v", down, err)
		}
	}
}

func TestCAStandsStillAtItsGate(t *testing.T) {
	t.Parallel()
	reached, open := make(chan struct{}), make(chan struct{})
	_, ca, client := lab(t, acmelab.CAOptions{Gate: func(path string) {
		if strings.HasPrefix(path, acmelab.PathFinalize) {
			close(reached)
			<-open
		}
	}})
	acct := account(t, client)
	done := make(chan error, 1)
	go func() {
		_, err := client.ObtainCertificateForSANs(t.Context(), acct, key(t), []string{"g.example.test"})
		done <- err
	}()
	<-reached
	account(t, client) // others go on
	if got := ca.Requests(acmelab.PathCert); got != 0 {
		t.Errorf("a certificate was fetched behind the closed gate")
	}
	close(open)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCAListensWhereItIsToldAndSpeaksToItsLog(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var lines []string
	log := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}
	ca := acmelab.NewCA(t, acmelab.CAOptions{Log: log})
	account(t, acmeClient(ca, nil))
	mu.Lock()
	defer mu.Unlock()
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, acmelab.PathNewAccount) }) {
		t.Errorf("no line about the new account among %q", lines)
	}
	addr := strings.TrimSuffix(strings.TrimPrefix(ca.Directory, "https://"), acmelab.PathDirectory)
	if _, err := acmelab.StartCA(acmelab.CAOptions{Addr: addr}); err == nil {
		t.Errorf("two CAs on %s", addr)
	}
}

func TestLabIssuesAndStoresAndCanMove(t *testing.T) {
	t.Parallel()
	first, err := acmelab.Start(acmelab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	obtain(t, first.CA, acmeClient(first.CA, rfc2136Provider(first.DNS), "example.test."),
		account(t, acmeClient(first.CA, nil)), "example.test")
	directory, endpoint, server := first.CA.Directory, first.S3.Endpoint, first.DNS.Addr
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := acmelab.New(t, acmelab.Options{ // the same addresses again
		DNS: acmelab.DNSOptions{Addr: server},
		CA:  acmelab.CAOptions{Addr: strings.TrimSuffix(strings.TrimPrefix(directory, "https://"), acmelab.PathDirectory)},
		S3:  acmelab.S3Options{Addr: strings.TrimPrefix(endpoint, "http://")},
	})
	if second.CA.Directory != directory || second.S3.Endpoint != endpoint || second.DNS.Addr != server {
		t.Errorf("the second lab is at %s, %s, %s, want %s, %s, %s",
			second.CA.Directory, second.S3.Endpoint, second.DNS.Addr, directory, endpoint, server)
	}
}
