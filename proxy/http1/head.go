package http1

import (
	"bytes"
	"strings"

	"edge/proxy/exchange"
)

// Bounds of a head, of a request or of a reply, and of each interim reply.
const (
	maxHead   = 64 << 10 // bytes
	maxFields = 512      // field lines
)

// malformed says in which way a message is not one, without its bytes.
type malformed string

func (m malformed) Error() string { return string(m) }

const (
	errBareLF     malformed = "line feed without carriage return"
	errHeadSize   malformed = "head too large"
	errFieldCount malformed = "too many fields"
	errFold       malformed = "folded field"
	errColon      malformed = "field without colon"
	errName       malformed = "invalid field name"
	errValue      malformed = "invalid byte in field value"
)

// headScan finds the end of a head, or of a trailer section, in a buffer that
// fills piece by piece, and looks at no byte twice. The zero value is at the
// start of the buffer.
type headScan struct {
	next  int // the first byte not looked at
	start int // of the line that it is in
	lines int // complete lines before that
}

// find returns the length of the head, the empty line included, or 0 when b
// does not hold all of it. A line ends with CRLF and nothing less: who takes a
// bare LF for the end of a line (RFC 9112 2.2 allows it) disagrees with somebody
// on where a message ends.
func (s *headScan) find(b []byte) (int, error) {
	for {
		i := bytes.IndexByte(b[s.next:], '\n')
		if i < 0 {
			s.next = len(b)
			return 0, nil
		}
		end := s.next + i
		if end == s.start || b[end-1] != '\r' {
			return 0, errBareLF
		}
		s.next = end + 1
		if end-1 == s.start {
			return s.next, nil
		}
		s.start = s.next
		if s.lines++; s.lines > maxFields+1 {
			return 0, errFieldCount
		}
	}
}

// cutLine splits s, which headScan has seen, after its first line.
func cutLine(s string) (line, rest string) {
	i := strings.IndexByte(s, '\n')
	return s[:i-1], s[i+1:]
}

// parseFields appends the fields of s, which headScan has seen and which ends
// with the empty line. They are substrings of s (RFC 9112 5). A line end stops
// both loops over its bytes, so that they need no look at the length.
func parseFields(f exchange.Fields, s string) (exchange.Fields, error) {
	for s != crlf {
		i := 0
		for class[s[i]]&tokenByte != 0 {
			i++
		}
		if s[i] != ':' || i == 0 {
			return nil, fieldNameError(s)
		}
		name := s[:i]
		i++
		start := i
		for class[s[i]]&valueByte != 0 {
			i++
		}
		if s[i] != '\r' || s[i+1] != '\n' {
			return nil, errValue
		}
		f = append(f, exchange.Field{Name: name, Value: trimOWS(s[start:i])})
		s = s[i+len(crlf):]
	}
	return f, nil
}

const crlf = "\r\n"

// fieldNameError says what is wrong with the first line of s, whose beginning is
// no name with a colon. A blank before the colon is none: RFC 9112 5.1.
func fieldNameError(s string) error {
	line, _ := cutLine(s)
	switch {
	case isBlank(s[0]):
		return errFold
	case !strings.Contains(line, ":"):
		return errColon
	}
	return errName
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func trimOWS(s string) string {
	for s != "" && isBlank(s[0]) {
		s = s[1:]
	}
	for s != "" && isBlank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

// Classes of bytes.
const (
	tokenByte = 1 << iota // tchar, RFC 9110 5.6.2
	valueByte             // VCHAR, obs-text, SP and HTAB, RFC 9110 5.5
	uriByte               // VCHAR and obs-text, which clients do send: what ends no target
)

var class = func() (t [256]byte) {
	for c := range t {
		switch {
		case c > ' ' && c != 0x7f:
			t[c] = valueByte | uriByte
		case c == ' ' || c == '\t':
			t[c] = valueByte
		}
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if alnum || c < 0x80 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0 {
			t[c] |= tokenByte
		}
	}
	return t
}()

func isToken(s string) bool      { return s != "" && isAll(s, tokenByte) }
func isFieldValue(s string) bool { return isAll(s, valueByte) }

func isAll(s string, bit byte) bool {
	for i := range len(s) {
		if class[s[i]]&bit == 0 {
			return false
		}
	}
	return true
}

// equalFold compares names and tokens, of which the second is in lower case.
// Only ASCII letters fold.
func equalFold(s, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// nextToken cuts the first element off a list (RFC 9110 5.6.1).
func nextToken(list string) (token, rest string) {
	token, rest, _ = strings.Cut(list, ",")
	return trimOWS(token), rest
}

// hasToken reports whether the list has an element that is the token, given in
// lower case.
func hasToken(list, lower string) bool {
	for list != "" {
		var t string
		if t, list = nextToken(list); equalFold(t, lower) {
			return true
		}
	}
	return false
}
