package tlsmgr

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"edge/tlsmgr/acme"
	"edge/tlsmgr/dns"
)

// Bounds of messages, in bytes.
const (
	maxReason = 400 // of the words of others
	maxLine   = 800 // of an error in all
)

// failure is what went wrong, as an operator should read it: one line.
type failure struct {
	text  string
	cause error
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() error { return f.cause }

// paused is an attempt that has to wait for its turn at a CA.
type paused struct {
	wait   time.Duration
	reason string
}

func (p *paused) Error() string {
	return fmt.Sprintf("waiting %s: %s", p.wait.Round(time.Second), p.reason)
}

// postponed is a failure after which there is a time to try again.
type postponed struct {
	error
	wait time.Duration
}

func (p *postponed) Unwrap() error { return p.error }

// patienceFor is how long a failure asks to be left alone: because the CA said
// so, or the budget. 0 is as long as usual.
func patienceFor(err error) time.Duration {
	if p, ok := errors.AsType[*postponed](err); ok {
		return p.wait
	}
	if p, ok := errors.AsType[*paused](err); ok {
		return p.wait
	}
	if e, ok := errors.AsType[*acme.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// verdict reports whether err is the CA's answer, which every replica would
// get. Others, like credentials that only this replica lacks or a network that
// it cannot reach, must not keep healthy replicas from trying.
func verdict(err error) bool {
	if _, ok := errors.AsType[*paused](err); ok {
		return true
	}
	e, ok := errors.AsType[*acme.Error](err)
	return ok && e.Kind != acme.Unreachable
}

// refusedNames are the names that an attempt failed for, with reasons; empty
// when it failed for another cause. What DNS failed for is about names only when
// it is not about all of them: then it may be this replica's trouble.
func refusedNames(err error, all []string) map[string]string {
	if e, ok := errors.AsType[*dns.RecordsError](err); ok {
		out := map[string]string{}
		for _, record := range e.Names {
			out[strings.TrimPrefix(record, "_acme-challenge.")] = oneError(err).Error()
		}
		if len(namesAmong(all, out)) == len(all) {
			return nil
		}
		return out
	}
	if e, ok := errors.AsType[*acme.Error](err); ok && e.Kind != acme.RateLimited {
		return e.Names
	}
	return nil
}

// namesAmong are those of all that a CA or a DNS record's name stands for: a
// wildcard is named by its domain (RFC 8555 section 7.1.4).
func namesAmong(all []string, refused map[string]string) map[string]string {
	out := map[string]string{}
	for _, n := range all {
		reason, ok := refused[n]
		if !ok {
			reason, ok = refused[strings.TrimPrefix(n, "*.")]
		}
		if ok {
			out[n] = reason
		}
	}
	return out
}

// backoff is the pause after so many failed attempts in a row. Let's Encrypt
// allows five failed validations of a name in an hour, so five quick ones and
// then one each hour stay below it. The jitter keeps replicas apart.
func backoff(failures int) time.Duration {
	steps := []time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour}
	d := steps[min(max(failures, 1), len(steps))-1]
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d)) //nolint:gosec // jitter is no secret
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
