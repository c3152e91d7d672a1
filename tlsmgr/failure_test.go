package tlsmgr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mholt/acmez/v3/acme"

	"edge/config"
)

// testIssuer is an issuer that only explains.
func testIssuer() *issuer {
	return &issuer{config: &config.Issuer{Name: "le", Directory: "https://ca.test:14000/dir"}}
}

func TestUnreachableCAIsExplained(t *testing.T) {
	dial := func(err error) error {
		return fmt.Errorf("attempt 1: %w", &url.Error{Op: "Get", URL: "https://ca.test:14000/dir", Err: &net.OpError{Op: "dial", Net: "tcp", Err: err}})
	}
	const hint = " (check issuers.le.directory, and that edge may connect to it)"
	unfit := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"refused":   {dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "cannot reach ca.test:14000: connection refused" + hint},
		"no route":  {dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "cannot reach ca.test:14000: no route to host" + hint},
		"no host":   {dial(&net.DNSError{Err: "no such host", Name: "ca.test", IsNotFound: true}), "cannot reach ca.test:14000: host name not found" + hint},
		"timeout":   {dial(os.ErrDeadlineExceeded), "cannot reach ca.test:14000: timeout" + hint},
		"deadline":  {dial(context.DeadlineExceeded), "cannot reach ca.test:14000: timeout" + hint},
		"cut":       {dial(io.EOF), "cannot reach ca.test:14000: connection closed" + hint},
		"cut early": {dial(io.ErrUnexpectedEOF), "cannot reach ca.test:14000: connection closed" + hint},
		"untrusted": {dial(x509.UnknownAuthorityError{}), "the certificate of ca.test:14000 is not trusted (set issuers.le.ca to a PEM file with its root)"},
		"misnamed":  {dial(unfit(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"b.test"}}, Host: "ca.test"})), "the certificate of ca.test:14000 is not valid: x509: certificate is valid for b.test, not ca.test (check issuers.le.directory, and this machine's clock)"},
		"expired":   {dial(unfit(x509.CertificateInvalidError{Reason: x509.Expired, Detail: "long ago"})), "the certificate of ca.test:14000 is not valid: x509: certificate has expired or is not yet valid: long ago (check issuers.le.directory, and this machine's clock)"},
		"other":     {errors.New("HTTP 500:\n<html>"), "ca.test:14000: HTTP 500: <html> (edge tries again; does issuers.le.directory lead to an ACME server?)"},
	} {
		t.Run(name, func(t *testing.T) {
			err := testIssuer().explain("place the order", c.err)
			if want := "place the order: " + c.want; err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if !errors.Is(err, c.err) && name != "untrusted" { // that one does not compare
				t.Error("the cause is lost")
			}
		})
	}
}

func TestCancelledRequestIsNotTheCAsFault(t *testing.T) {
	err := testIssuer().explain("place the order", fmt.Errorf("attempt 1: %w", context.Canceled))
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "ca.test") {
		t.Errorf("got %v", err)
	}
}

func TestProblemsOfTheCAComeWithAdvice(t *testing.T) {
	for kind, hint := range map[string]string{
		acme.ProblemTypeRateLimited:             "edge waits as long as the CA says",
		acme.ProblemTypeRejectedIdentifier:      "remove it, or use another issuer",
		acme.ProblemTypeUnsupportedIdentifier:   "remove it, or use another issuer",
		acme.ProblemTypeCAA:                     "a CAA record of the domain forbids this CA",
		acme.ProblemTypeDNS:                     "the one that the internet sees?",
		acme.ProblemTypeUnauthorized:            "the one that the internet sees?",
		acme.ProblemTypeExternalAccountRequired: "not supported yet",
		acme.ProblemTypeInvalidContact:          "check the issuer's email",
		acme.ProblemTypeUserActionRequired:      "wants a person",
		acme.ProblemTypeAccountDoesNotExist:     "at the next attempt",
		acme.ProblemTypeServerInternal:          "",
	} {
		p := acme.Problem{Type: kind, Detail: "because", Resource: acme.Authorization{}}
		for _, err := range []error{fmt.Errorf("attempt 1: %w", p), fmt.Errorf("order: %w", &p)} { // acmez does both
			got := testIssuer().explain("finalize", err).Error()
			want := "finalize: the CA refuses: " + strings.TrimPrefix(kind, acme.ProblemTypeNamespace) + ": because"
			if !strings.HasPrefix(got, want) || !strings.Contains(got, hint) || (hint == "") == strings.HasSuffix(got, ")") {
				t.Errorf("got  %s\nwant %s … %s", got, want, hint)
			}
		}
	}
}

func TestProblemNamesTheFirstFewIdentifiers(t *testing.T) {
	p := acme.Problem{Type: acme.ProblemTypeCompound, Detail: "many"}
	for n := range 10 {
		p.Subproblems = append(p.Subproblems, acme.Subproblem{
			Problem: acme.Problem{Detail: "no"}, Identifier: acme.Identifier{Type: "dns", Value: fmt.Sprintf("n%d.test", n)},
		})
	}
	if got, want := testIssuer().describe(p), "compound: many; n0.test: no; n1.test: no; and 8 more"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestOnlyACAThatIsBusyIsWaitedFor(t *testing.T) {
	for status, want := range map[int]time.Duration{
		http.StatusTooManyRequests: time.Minute, http.StatusServiceUnavailable: time.Minute, http.StatusForbidden: 0, http.StatusOK: 0,
	} {
		resp := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {"60"}}}
		if got := askedToWait(resp, time.Now()); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	cause := errors.New("a.test: 127.0.0.1:53 has no record")
	joined := errors.Join(cause, errors.New("b.test:\t127.0.0.1:53\r\n  timeout"))
	err := oneError(joined)
	if want := "a.test: 127.0.0.1:53 has no record; b.test: 127.0.0.1:53; timeout"; err.Error() != want {
		t.Errorf("got  %q\nwant %q", err, want)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
	if same := oneError(cause); same != cause { //nolint:errorlint // identity is meant
		t.Error("a good error was wrapped")
	}
	if err := joinLines([]error{cause, joined}); strings.Contains(err.Error(), "\n") || !errors.Is(err, cause) {
		t.Errorf("joined %q", err)
	}
}

// Whatever a CA, a DNS server or a bucket says, it is one bounded line of UTF-8.
func FuzzOneError(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("ä", maxLine))
	f.Add("\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := oneError(errors.New(text)).Error()
		if strings.ContainsAny(got, "\r\n") || len(got) > maxLine+len("…") {
			t.Errorf("%d bytes: %q", len(got), got)
		}
		if utf8.ValidString(text) && !utf8.ValidString(got) {
			t.Errorf("%q was cut inside a character: %q", text, got)
		}
		if line := oneLine(text); strings.ContainsAny(line, "\r\n") || len(line) > maxReason+len("…") {
			t.Errorf("%q", line)
		}
	})
}
