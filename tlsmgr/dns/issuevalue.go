package dns

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// issueValue is the value of a CAA issue property (RFC 8659, section 4.2), whose
// syntax the TXT records of dns-persist-01 share.
type issueValue struct {
	issuer     string // as written; "" authorises nobody
	parameters []parameter
}

// parameter is a tag, in lower case, and its value.
type parameter struct {
	tag, value string
}

// The grammar of RFC 8659, section 4.2. White space is SP and HTAB.
var (
	issuerDomain = regexp.MustCompile(`^[A-Za-z0-9]+(-+[A-Za-z0-9]+)*(\.[A-Za-z0-9]+(-+[A-Za-z0-9]+)*)*$`)
	issueTag     = regexp.MustCompile(`^[A-Za-z0-9]+(-+[A-Za-z0-9]+)*$`)
	issueText    = regexp.MustCompile(`^[\x21-\x3a\x3c-\x7e]*$`)
)

// parseIssueValue reads an issue value. A CA that cannot read one treats it as
// authorising nobody, so what is wrong is worth telling.
func parseIssueValue(text string) (issueValue, error) {
	const blank = " \t"
	issuer, rest, more := strings.Cut(text, ";")
	v := issueValue{issuer: strings.Trim(issuer, blank)}
	if v.issuer != "" && !issuerDomain.MatchString(v.issuer) {
		return v, fmt.Errorf("%q is no domain name of a CA", oneLine(v.issuer))
	}
	if rest = strings.Trim(rest, blank); !more || rest == "" {
		return v, nil
	}
	for part := range strings.SplitSeq(rest, ";") {
		tag, value, ok := strings.Cut(part, "=")
		tag, value = strings.Trim(tag, blank), strings.Trim(value, blank)
		switch {
		case strings.Trim(part, blank) == "":
			return v, errors.New("an empty parameter, or a semicolon at the end")
		case !ok || !issueTag.MatchString(tag):
			return v, fmt.Errorf("parameter %q is not tag=value", oneLine(strings.Trim(part, blank)))
		case !issueText.MatchString(value):
			return v, fmt.Errorf("the value of %s has a space or a character that is not ASCII", tag)
		}
		v.parameters = append(v.parameters, parameter{strings.ToLower(tag), value})
	}
	return v, nil
}

// get returns the parameter's value, whether it is there, and an error when it
// is there more than once, which no CA accepts (RFC 8657, sections 3 and 4).
func (v issueValue) get(tag string) (value string, ok bool, err error) {
	for _, p := range v.parameters {
		if p.tag != tag {
			continue
		}
		if ok {
			return "", true, fmt.Errorf("%s is given twice", tag)
		}
		value, ok = p.value, true
	}
	return value, ok, nil
}
