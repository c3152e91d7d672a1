package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	miekg "github.com/miekg/dns"
)

// Bounds of messages.
const (
	maxReason = 300 // bytes of a provider's own words
	maxErrors = 5   // names of an order that are told about
)

// refusal is why a provider did not do what it was asked, in one line.
type refusal struct {
	reason string
	hint   string // "" when there is nothing to advise
}

// providerError says which provider refused what, and why. It matches the cause
// with errors.Is and errors.As.
type providerError struct {
	text  string
	cause error
}

func (e *providerError) Error() string { return e.text }

func (e *providerError) Unwrap() error { return e.cause }

// fail turns the error of a library into a message: one line, with a hint, and
// without any of the provider's secrets.
func (p *provider) fail(operation, zone string, err error) error {
	why := p.explain(err)
	if errors.Is(err, context.Canceled) {
		why = refusal{reason: "cancelled"}
	}
	text := why.reason
	if why.hint != "" {
		text += " (" + why.hint + ")"
	}
	for _, secret := range p.secrets {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return &providerError{
		text:  fmt.Sprintf("%s zone %s: provider %s (%s): %s", operation, bare(zone), p.name, p.kind, text),
		cause: err,
	}
}

// explainUpdate reads the errors of libdns/rfc2136. The library below it makes
// one ErrAuth of every NOTAUTH, whether the key is unknown, its secret wrong, the
// clock off (RFC 8945, section 5.2) or the zone not the server's (RFC 2136,
// section 3.1.1), and drops the message that would tell.
func explainUpdate(err error, key, server string) refusal {
	text := err.Error()
	switch {
	case errors.Is(err, miekg.ErrAuth), strings.Contains(text, `"NOTAUTH"`):
		return refusal{
			fmt.Sprintf("%s answers NOTAUTH: it does not accept TSIG key %s, or is not a primary of the zone", server, bare(key)),
			"check key_name, key_algorithm and key against the server's key clause, then server and both clocks",
		}
	case errors.Is(err, miekg.ErrSig), errors.Is(err, miekg.ErrSecret), errors.Is(err, miekg.ErrKeyAlg), errors.Is(err, miekg.ErrTime):
		return refusal{
			fmt.Sprintf("the answer of %s is not signed by TSIG key %s: %s", server, bare(key), oneLine(text)),
			"check key_name, key_algorithm and key against the server's key clause, and both clocks",
		}
	case strings.Contains(text, `"REFUSED"`):
		return refusal{
			fmt.Sprintf("%s answers REFUSED: TSIG key %s may not change these records", server, bare(key)),
			"allow it in the zone's update-policy: grant KEY name _acme-challenge.NAME. TXT for each name, or grant KEY zonesub TXT",
		}
	case strings.Contains(text, `"NOTZONE"`), strings.Contains(text, `"NOTIMP"`):
		return refusal{server + ": " + oneLine(text), "is server the zone's primary, and are dynamic updates on?"}
	case isNetwork(err):
		return refusal{fmt.Sprintf("%s cannot be reached: %s", server, reason(err)), "updates go to server by TCP"}
	}
	return refusal{reason: server + ": " + oneLine(text)}
}

// isNetwork tells a connection that failed from an answer that says no.
func isNetwork(err error) bool {
	var op *net.OpError
	var name *net.DNSError
	return errors.As(err, &op) || errors.As(err, &name) || isTimeout(err)
}

// reason is an error of the network without the addresses that the caller
// names anyway.
func reason(err error) string {
	var errno syscall.Errno
	var name *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.As(err, &errno) && !errno.Timeout():
		return errno.Error()
	case errors.As(err, &name):
		return "host name not found"
	case isTimeout(err), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "i/o timeout"
	}
	return oneLine(err.Error())
}

// A RecordsError is a failure that some records of an order have caused; without
// them the others may be presented. A failure of everything, as when the context
// ends, is none.
type RecordsError struct {
	Names     []string // of the records as they were asked for, without final dot, sorted
	Untouched bool     // it was seen before anything was written, for any record
	cause     error
}

func (e *RecordsError) Error() string { return e.cause.Error() }

func (e *RecordsError) Unwrap() error { return e.cause }

// blame makes cause a RecordsError, unless ctx has ended.
func blame(ctx context.Context, names []string, cause error) error {
	if ctx.Err() != nil {
		return cause
	}
	bareNames := make([]string, 0, len(names))
	for _, n := range names {
		bareNames = append(bareNames, bare(n))
	}
	slices.Sort(bareNames)
	return &RecordsError{Names: slices.Compact(bareNames), cause: cause}
}

// some joins errors like errors.Join, but only the first few: when a resolver
// is down every name of an order says the same.
func some(errs []error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if more := len(errs) - maxErrors; more > 0 {
		errs = append(errs[:maxErrors], fmt.Errorf("and %d more names", more))
	}
	return errors.Join(errs...)
}

// rcode is a response code by its name.
func rcode(code int) string {
	if s, ok := miekg.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprintf("RCODE%d", code)
}

// oneLine makes text of unknown origin fit for a message.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text)
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}
