package tlsmgr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// Bounds of messages, in bytes.
const (
	maxReason = 400 // of the words of others
	maxLine   = 800 // of an error in all
)

// failure is what a CA or the way to it did wrong, as an operator should read
// it: one line, with a hint.
type failure struct {
	text  string
	cause error
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() error { return f.cause }

// explain turns an error of the ACME client into one line with a hint.
func (i *issuer) explain(operation string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	if p, ok := problemOf(err); ok {
		return &failure{text: operation + ": the CA refuses: " + i.describe(p), cause: err}
	}
	reason, hint := i.network(err)
	return &failure{text: fmt.Sprintf("%s: %s (%s)", operation, reason, hint), cause: err}
}

// describe is an ACME problem (RFC 8555 section 6.7) with advice.
func (i *issuer) describe(p acme.Problem) string {
	kind := strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)
	texts := []string{kind + ": " + oneLine(p.Detail)}
	for _, sub := range p.Subproblems {
		texts = append(texts, sub.Identifier.Value+": "+oneLine(sub.Detail))
	}
	text := firstFew(texts)
	if hint := i.adviceFor(p); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}

// adviceFor is what to do about a problem.
func (i *issuer) adviceFor(p acme.Problem) string {
	if _, proof := p.Resource.(acme.Authorization); p.Type == acme.ProblemTypeUnauthorized && !proof {
		return "is the ACME account deactivated? Then delete " + accountKey(accountID(i.config)) + " from the storage, and edge registers a new one"
	}
	switch p.Type {
	case acme.ProblemTypeRateLimited:
		return "too many orders or failures; edge waits as long as the CA says"
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return "this CA does not issue for the name: remove it, or use another issuer or a file certificate"
	case acme.ProblemTypeCAA:
		return "a CAA record of the domain forbids this CA"
	case acme.ProblemTypeDNS, acme.ProblemTypeUnauthorized, acme.ProblemTypeIncorrectResponse:
		return "is the zone that edge changes the one that the internet sees?"
	case acme.ProblemTypeAccountDoesNotExist:
		return "edge registers a new account at the next attempt"
	case acme.ProblemTypeExternalAccountRequired:
		return "external account binding is not supported yet; use another issuer"
	case acme.ProblemTypeInvalidContact, acme.ProblemTypeUnsupportedContact:
		return "check the issuer's email"
	case acme.ProblemTypeUserActionRequired:
		return "the CA wants a person to visit it, perhaps to accept new terms"
	default:
		return ""
	}
}

// network is why the CA could not be asked at all.
func (i *issuer) network(err error) (reason, hint string) {
	ca := i.config.Directory
	if u, parseErr := url.Parse(ca); parseErr == nil && u.Host != "" {
		ca = u.Host
	}
	field := "issuers." + i.config.Name
	hint = "check " + field + ".directory, and that edge may connect to it"
	var (
		errno  syscall.Errno
		lookup *net.DNSError
		unfit  *tls.CertificateVerificationError
	)
	switch {
	case isUntrusted(err):
		return "the certificate of " + ca + " is not trusted", "set " + field + ".ca to a PEM file with its root"
	case errors.As(err, &unfit):
		return "the certificate of " + ca + " is not valid: " + oneLine(unfit.Err.Error()), "check " + field + ".directory, and this machine's clock"
	case errors.As(err, &lookup):
		return "cannot reach " + ca + ": host name not found", hint
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return "cannot reach " + ca + ": timeout", hint
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cannot reach " + ca + ": connection closed", hint
	case errors.As(err, &errno):
		return "cannot reach " + ca + ": " + errno.Error(), hint
	default:
		return ca + ": " + oneLine(err.Error()), "edge tries again; does " + field + ".directory lead to an ACME server?"
	}
}

func isUntrusted(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, system := errors.AsType[x509.SystemRootsError](err)
	return authority || system
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// oneLine makes text of unknown origin fit for a message.
func oneLine(text string) string {
	return shorten(strings.Join(strings.Fields(text), " "), maxReason)
}

// joinLines is independent errors in one line.
func joinLines(errs []error) error {
	texts := make([]string, 0, len(errs))
	for _, err := range errs {
		texts = append(texts, oneLine(err.Error()))
	}
	return &failure{text: firstFew(texts), cause: errors.Join(errs...)}
}

// firstFew joins what several say; more than three say the same.
func firstFew(texts []string) string {
	const most = 3
	if len(texts) > most+1 {
		texts = append(texts[:most:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return strings.Join(texts, "; ")
}

// backoff is the pause after so many failed attempts in a row. Let's Encrypt
// allows five failed validations of a name in an hour, so five quick ones and
// then one each hour stay below it. The jitter keeps replicas apart.
func backoff(failures int) time.Duration {
	steps := []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}
	d := steps[min(max(failures, 1), len(steps))-1]
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d)) //nolint:gosec // jitter is no secret
}

// oneError is err as one line; independent errors, one a line, are joined.
func oneError(err error) error {
	text := err.Error()
	if !strings.ContainsAny(text, "\r\n") && len(text) <= maxLine {
		return err
	}
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return &failure{text: shorten(strings.Join(lines, "; "), maxLine), cause: err}
}

// shorten cuts text at most bytes.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
