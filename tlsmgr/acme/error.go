package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mholt/acmez/v3/acme"
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
	default:
		reason, hint = c.network(err)
	}
	e.text = shorten(fmt.Sprintf("%s: %s (%s)", r.op, reason, hint), maxLine)
	return e
}

// refusal is an ACME problem (RFC 8555 section 6.7) with advice.
func (c *CA) refusal(r request, p acme.Problem, err error, n *note) *Error {
	e := c.refusalOf(kindOfProblem(p), r, p)
	e.cause = err
	if n.status == http.StatusTooManyRequests || n.status == http.StatusServiceUnavailable || e.Kind == RateLimited {
		e.RetryAfter = n.retryAfter
	}
	return e
}

func (c *CA) refusalOf(kind Kind, r request, p acme.Problem) *Error {
	e := &Error{Kind: kind, Names: namesIn(p, kind, r.names), cause: p}
	if kind == BadRequest && len(e.Names) > 0 {
		e.Kind = Rejected // some CAs call names that they do not like malformed
	}
	e.text = r.op + ": the CA refuses: " + describe(p)
	if hint := c.advice(p, e.Kind); hint != "" {
		e.text = shorten(e.text, maxLine-len(hint)) + " (" + hint + ")"
	}
	return e
}

// describe is a problem in one line, without its type's namespace.
func describe(p acme.Problem) string {
	texts := []string{reasonOf(p)}
	for _, sub := range p.Subproblems {
		texts = append(texts, sub.Identifier.Value+": "+reasonOf(sub.Problem))
	}
	return firstFew(texts)
}

func reasonOf(p acme.Problem) string {
	return oneLine(strings.Trim(strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)+": "+p.Detail, ": "))
}

// kindOfProblem classifies by the problem's type, then by the status.
func kindOfProblem(p acme.Problem) Kind {
	switch p.Type {
	case acme.ProblemTypeAccountDoesNotExist:
		return AccountLost
	case acme.ProblemTypeRateLimited:
		return RateLimited
	case acme.ProblemTypeRejectedIdentifier, acme.ProblemTypeUnsupportedIdentifier:
		return Rejected
	case acme.ProblemTypeCAA:
		return CAA
	case acme.ProblemTypeDNS, acme.ProblemTypeIncorrectResponse, acme.ProblemTypeConnection, acme.ProblemTypeTLS:
		return Unproven
	case acme.ProblemTypeServerInternal, acme.ProblemTypeBadNonce: // acmez has sent many
		return ServerError
	case acme.ProblemTypeCompound:
		return kindOfAll(p.Subproblems)
	}
	switch {
	case p.Status == http.StatusTooManyRequests:
		return RateLimited
	case p.Status >= http.StatusInternalServerError:
		return ServerError
	case p.Status >= http.StatusBadRequest || strings.HasPrefix(p.Type, acme.ProblemTypeNamespace):
		return BadRequest
	default:
		return Other
	}
}

// kindOfAll is what subproblems agree about.
func kindOfAll(all []acme.Subproblem) Kind {
	if len(all) == 0 {
		return Other
	}
	kind := kindOfProblem(all[0].Problem)
	for _, sub := range all[1:] {
		if kindOfProblem(sub.Problem) != kind {
			return Other
		}
	}
	return kind
}

// namesIn is what a problem says about single names: in its subproblems (RFC
// 8555 section 6.7.1), else in its text, if it is of a kind that is about names.
func namesIn(p acme.Problem, kind Kind, asked []string) map[string]string {
	names := map[string]string{}
	for _, sub := range p.Subproblems {
		if sub.Identifier.Value != "" {
			names[strings.ToLower(sub.Identifier.Value)] = reasonOf(sub.Problem)
		}
	}
	if len(names) > 0 || kind != Rejected && kind != CAA && kind != Unproven {
		return names
	}
	words := strings.FieldsFunc(strings.ToLower(p.Detail), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("*.-:_", r)
	})
	for n, w := range words {
		words[n] = strings.TrimRight(w, ".:")
	}
	for _, name := range asked {
		if len(asked) == 1 || slices.Contains(words, name) {
			names[name] = reasonOf(p)
		}
	}
	return names
}

// advice is what to do about a problem.
func (c *CA) advice(p acme.Problem, kind Kind) string {
	field := "issuers." + c.config.Name + ".acme."
	switch {
	case kind == Unproven:
		return "does the internet see what edge set up for the challenge?"
	case p.Type == acme.ProblemTypeUnauthorized:
		return "is the ACME account deactivated, or does this belong to another one?"
	case p.Type == acme.ProblemTypeExternalAccountRequired && c.eab == nil:
		return "set " + field + "eab to the key id and HMAC key that the CA gave you"
	case p.Type == acme.ProblemTypeExternalAccountRequired:
		return "check " + field + "eab; some CAs accept a key only once"
	case p.Type == acme.ProblemTypeInvalidContact, p.Type == acme.ProblemTypeUnsupportedContact:
		return "check " + field + "email"
	case p.Type == acme.ProblemTypeUserActionRequired:
		return "the CA wants a person to visit it, perhaps to accept new terms"
	case p.Type == acme.ProblemTypeBadCSR:
		return "the CA does not like the key type or the names"
	}
	switch kind {
	case RateLimited:
		return "too many orders or failures; edge waits as long as the CA says"
	case Rejected:
		return "this CA does not issue for the name: remove it, or use another issuer or a file certificate"
	case CAA:
		return "a CAA record of the domain forbids this CA"
	case AccountLost:
		return "edge registers a new account at the next attempt"
	case ServerError:
		return "edge tries again; see the CA's status page"
	case Unproven, BadRequest, Unreachable, Other:
	}
	return ""
}

// problemOf finds the ACME problem in err, which acmez wraps both by value and
// by pointer.
func problemOf(err error) (acme.Problem, bool) {
	if p, ok := errors.AsType[acme.Problem](err); ok {
		return p, true
	}
	if p, ok := errors.AsType[*acme.Problem](err); ok && p != nil {
		return *p, true
	}
	return acme.Problem{}, false
}

func isBadNonce(err error) bool {
	p, ok := problemOf(err)
	return ok && p.Type == acme.ProblemTypeBadNonce
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

// unproven is what the CA did not believe, in one error: each name and why, and
// the kinds of the reasons if they agree.
func (c *CA) unproven(op string, refused map[string]acme.Problem, cause error) *Error {
	e := &Error{Kind: Unproven, Names: map[string]string{}, cause: cause}
	var texts []string
	caa := 0
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		p := refused[name]
		e.Names[name] = reasonOf(p)
		texts = append(texts, name+": "+reasonOf(p))
		if p.Type == acme.ProblemTypeCAA {
			caa++
		}
	}
	if caa == len(refused) {
		e.Kind = CAA
	}
	hint := c.advice(acme.Problem{}, e.Kind)
	e.text = shorten(op+": the CA refuses: "+firstFew(texts), maxLine-len(hint)) + " (" + hint + ")"
	return e
}
