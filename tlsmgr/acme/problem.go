package acme

import (
	"errors"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"github.com/mholt/acmez/v3/acme"
)

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
	if hint := c.advice(r, p, e.Kind); hint != "" {
		e.text = shorten(e.text, maxLine-len(hint)) + " (" + hint + ")"
	}
	return e
}

// describe is a problem in one line, without its type's namespace.
func describe(p acme.Problem) string {
	texts := []string{reasonOf(p)}
	for _, sub := range p.Subproblems {
		texts = append(texts, oneLine(sub.Identifier.Value)+": "+reasonOf(sub.Problem))
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

// namesIn is what a problem says about single names that were asked for: in its
// subproblems (RFC 8555 section 6.7.1), else in its text, if it is of a kind that
// is about names.
func namesIn(p acme.Problem, kind Kind, asked []string) map[string]string {
	names := map[string]string{}
	for _, sub := range p.Subproblems {
		if name, ok := find(asked, sub.Identifier.Value); ok {
			names[name] = reasonOf(sub.Problem)
		}
	}
	if len(names) > 0 || !slices.Contains([]Kind{Rejected, CAA, Unproven}, kind) {
		return names
	}
	for word := range wordsOf(p.Detail) {
		if name, ok := find(asked, word); ok {
			names[name] = reasonOf(p)
		}
	}
	if len(names) == 0 && len(asked) == 1 {
		names[asked[0]] = reasonOf(p)
	}
	return names
}

// wordsOf is what could be names or addresses in text.
func wordsOf(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for word := range strings.FieldsFuncSeq(text, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("*.-:_", r)
		}) {
			if !yield(strings.TrimRight(word, ".:")) {
				return
			}
		}
	}
}

// find is the name in asked that a CA calls name: some leave "*." out.
func find(asked []string, name string) (string, bool) {
	name = strings.ToLower(name)
	for _, n := range []string{name, "*." + name} {
		if name != "" && slices.Contains(asked, n) {
			return n, true
		}
	}
	return "", false
}

// advice is what to do about a problem.
func (c *CA) advice(r request, p acme.Problem, kind Kind) string {
	field := "issuers." + c.config.Name + ".acme."
	switch {
	case kind == Unproven:
		return "does the internet see what edge set up for the challenge?"
	case p.Type == acme.ProblemTypeUnauthorized && r.op == opRegister && c.eab != nil:
		return "check " + field + "eab: the CA does not know the key id, or the HMAC key is not its own"
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
	return kind.advice()
}

// advice is what to do about a problem of a kind, whatever it is in particular.
func (k Kind) advice() string {
	switch k {
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

// unproven is what the CA did not believe, in one error: each name and why, and
// the kind of the reasons if they agree.
func (c *CA) unproven(refused map[string]acme.Problem, cause error) *Error {
	kind, reasons := CAA, map[string]string{}
	for name, p := range refused {
		reasons[name] = reasonOf(p)
		if p.Type != acme.ProblemTypeCAA {
			kind = Unproven
		}
	}
	return aboutNames(kind, reasons, c.advice(request{}, acme.Problem{}, kind), cause)
}

// aboutNames is an error of proving names.
func aboutNames(kind Kind, reasons map[string]string, hint string, cause error) *Error {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		texts = append(texts, name+": "+reasons[name])
	}
	text := shorten("prove control of the names: "+firstFew(texts), maxLine-len(hint))
	return &Error{Kind: kind, Names: reasons, text: text + " (" + hint + ")", cause: cause}
}
