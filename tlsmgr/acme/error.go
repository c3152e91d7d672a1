package acme

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
	"time"
)

// Kind is what an Error means for what to do next.
type Kind string

// The kinds of errors.
const (
	AccountLost Kind = "account_lost" // the CA does not know the account or its key: register again
	RateLimited Kind = "rate_limited" // too much: wait for RetryAfter
	Rejected    Kind = "rejected"     // the CA does not issue for Names, however often it is asked
	Unproven    Kind = "unproven"     // control of Names was not proven
	CAA         Kind = "caa"          // a CAA record of Names forbids this CA
	Unreachable Kind = "unreachable"  // no ACME server answered: network, TLS, timeout, or something else lives there
	ServerError Kind = "server_error" // the CA is broken or overloaded
	BadRequest  Kind = "bad_request"  // the CA, or edge on its behalf, refuses what it was asked; repeating it does not help
	Other       Kind = "other"
)

// Error is what a CA or the way to it did wrong, as an operator should read it.
type Error struct {
	Kind       Kind
	Names      map[string]string // for each name that it is about, why; empty when it is not about names
	RetryAfter time.Duration     // that the CA asks for, at most a day; 0 is not at all

	text  string
	cause error
}

// Error is one line with a hint, of at most about a thousand bytes.
func (e *Error) Error() string { return e.text }

// Unwrap is the error of the ACME client or of the network; it may be long.
func (e *Error) Unwrap() error { return e.cause }

// kindOf is the Kind of err, "" when it is not an *Error.
func kindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return ""
}

// Bounds of messages, in bytes.
const (
	maxReason = 300 // of the words of others
	maxLine   = 800 // of an error in all
)

// explain turns an error of a step into an *Error. What is one already, and the
// end of the caller's own doing, stay as they are.
func (c *CA) explain(r request, err error, n *note) error {
	if _, ok := errors.AsType[*Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, ErrNoRenewalInfo) {
		return err
	}
	if p, ok := problemOf(err); ok {
		return c.refusal(r, p, err, n)
	}
	e := &Error{Kind: Unreachable, cause: err}
	var reason, hint string
	switch {
	case errors.Is(err, errTooMany):
		e.Kind = ServerError
		reason, hint = c.host()+": "+errTooMany.Error(), "report it to the CA"
	case n.status == http.StatusTooManyRequests:
		e.Kind, e.RetryAfter = RateLimited, n.retryAfter
		reason, hint = fmt.Sprintf("%s answers HTTP %d", c.host(), n.status), "edge waits as long as the CA says"
	case n.status >= http.StatusInternalServerError:
		e.Kind, e.RetryAfter = ServerError, n.retryAfter
		reason, hint = fmt.Sprintf("%s answers HTTP %d", c.host(), n.status), "edge tries again; see the CA's status page"
	case n.found && (n.status == http.StatusNotFound || n.status == http.StatusGone):
		e.Kind = BadRequest
		reason, hint = fmt.Sprintf("%s answers HTTP %d", c.host(), n.status), "the CA has forgotten it"
	case n.found && n.status/100 == 2 && !isNetwork(err):
		e.Kind = ServerError
		reason, hint = "the answer of "+c.host()+" makes no sense: "+oneLine(err.Error()), "edge tries again; report it to the CA"
	default:
		reason, hint = c.network(err)
	}
	e.text = shorten(fmt.Sprintf("%s: %s (%s)", r.op, reason, hint), maxLine)
	return e
}

// host is the CA's, for people.
func (c *CA) host() string {
	if u, err := url.Parse(c.config.Directory); err == nil && u.Host != "" {
		return u.Host
	}
	return c.config.Directory
}

// network is why the CA could not be asked at all.
func (c *CA) network(err error) (reason, hint string) {
	ca, field := c.host(), "issuers."+c.config.Name+".acme."
	hint = "check " + field + "directory, and that edge may connect to it"
	var (
		errno  syscall.Errno
		lookup *net.DNSError
		unfit  *tls.CertificateVerificationError
		long   *http.MaxBytesError
	)
	switch {
	case isUntrusted(err):
		return "the certificate of " + ca + " is not trusted", "set " + field + "ca to a PEM file with its root"
	case errors.As(err, &unfit):
		return "the certificate of " + ca + " is not valid: " + oneLine(unfit.Err.Error()), "check " + field + "directory, and this machine's clock"
	case errors.As(err, &long):
		return fmt.Sprintf("the answer of %s is larger than %d KiB", ca, long.Limit>>10), "does " + field + "directory lead to an ACME server?"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return "cannot reach " + ca + ": timeout", hint
	case errors.As(err, &lookup):
		return "cannot reach " + ca + ": host name not found", hint
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "cannot reach " + ca + ": connection closed", hint
	case errors.As(err, &errno):
		return "cannot reach " + ca + ": " + errno.Error(), hint
	default:
		return ca + ": " + oneLine(err.Error()), "does " + field + "directory lead to an ACME server?"
	}
}

func isUntrusted(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, system := errors.AsType[x509.SystemRootsError](err)
	return authority || system
}

// isCertificate reports that the CA's own certificate is the matter; asking
// again does not help.
func isCertificate(err error) bool {
	_, unfit := errors.AsType[*tls.CertificateVerificationError](err)
	return unfit || isUntrusted(err)
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// isNetwork reports an error on the way to the CA or back.
func isNetwork(err error) bool {
	_, system := errors.AsType[syscall.Errno](err)
	_, network := errors.AsType[net.Error](err)
	return system || network || isCertificate(err) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// oneLine makes text of unknown origin fit for a message.
func oneLine(text string) string {
	return shorten(strings.Join(strings.Fields(text), " "), maxReason)
}

// firstFew joins what several say; more than three say the same.
func firstFew(texts []string) string {
	const most = 3
	if len(texts) > most+1 {
		texts = append(texts[:most:most], fmt.Sprintf("and %d more", len(texts)-most))
	}
	return strings.Join(texts, "; ")
}

// shorten cuts text at most bytes.
func shorten(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
