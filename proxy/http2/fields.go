package http2

import "strings"

// Rules for field names and values that requests and replies share: RFC 9113
// 8.2.1 and 8.2.2, and the grammar of RFC 9110 5.1 and 5.5.

// tokenChars are the bytes of a name: 1 for any, 2 for an upper-case letter.
var tokenChars = func() (t [256]byte) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = 1
	}
	for c := byte('A'); c <= 'Z'; c++ {
		t[c] = 2
	}
	return t
}()

// validToken reports whether s is a token (RFC 9110 5.6.2).
func validToken(s string) bool {
	for i := range len(s) {
		if tokenChars[s[i]] == 0 {
			return false
		}
	}
	return s != ""
}

// validLowerName reports whether s is the name of a field as HTTP/2 has it.
func validLowerName(s string) bool {
	for i := range len(s) {
		if tokenChars[s[i]] != 1 {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s is a field value: no control but HTAB, and no
// white space at its ends.
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if isSpace(s[0]) || isSpace(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// trimSpace takes the white space off the ends of s, which belongs to the line and
// not to the value (RFC 9110 5.5).
func trimSpace(s string) string {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	for s != "" && isSpace(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// validTarget reports whether s can be a :path: origin-form, or "*" of OPTIONS.
func validTarget(method, s string) bool {
	if s == "*" {
		return method == "OPTIONS"
	}
	return strings.HasPrefix(s, "/") && visible(s)
}

// visible reports whether s has neither controls nor spaces.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// kind is what becomes of a field of a message.
type kind uint8

const (
	ordinary   kind = iota
	sensitive       // must not enter anybody's compression table (RFC 7541 7.1.3)
	hopByHop        // belongs to a connection (RFC 9113 8.2.2)
	framing         // written by the engine itself
	onlyTE          // passes as "trailers" only
	announcing      // passes with a request that has a trailer, which some servers drop otherwise
)

type knownName struct {
	index byte // in the static table of RFC 7541 Appendix A; 0 when it is not there
	kind  kind
}

// knownNames are the names that mean something to the engine or have an index.
var knownNames = map[string]knownName{
	"accept-charset": {15, ordinary}, "accept-encoding": {16, ordinary}, "accept-language": {17, ordinary},
	"accept-ranges": {18, ordinary}, "accept": {19, ordinary}, "access-control-allow-origin": {20, ordinary},
	"age": {21, ordinary}, "allow": {22, ordinary}, "authorization": {23, sensitive}, "cache-control": {24, ordinary},
	"content-disposition": {25, ordinary}, "content-encoding": {26, ordinary}, "content-language": {27, ordinary},
	"content-length": {28, framing}, "content-location": {29, ordinary}, "content-range": {30, ordinary},
	"content-type": {31, ordinary}, "cookie": {32, sensitive}, "date": {33, ordinary}, "etag": {34, ordinary},
	"expect": {35, framing}, "expires": {36, ordinary}, "from": {37, ordinary}, "host": {38, framing},
	"if-match": {39, ordinary}, "if-modified-since": {40, ordinary}, "if-none-match": {41, ordinary},
	"if-range": {42, ordinary}, "if-unmodified-since": {43, ordinary}, "last-modified": {44, ordinary},
	"link": {45, ordinary}, "location": {46, ordinary}, "max-forwards": {47, ordinary},
	"proxy-authenticate": {48, ordinary}, "proxy-authorization": {49, sensitive}, "range": {50, ordinary},
	"referer": {51, ordinary}, "refresh": {52, ordinary}, "retry-after": {53, ordinary}, "server": {54, ordinary},
	"set-cookie": {55, sensitive}, "strict-transport-security": {56, ordinary}, "transfer-encoding": {57, hopByHop},
	"user-agent": {58, ordinary}, "vary": {59, ordinary}, "via": {60, ordinary}, "www-authenticate": {61, ordinary},
	"connection": {0, hopByHop}, "keep-alive": {0, hopByHop}, "proxy-connection": {0, hopByHop},
	"upgrade": {0, hopByHop}, "trailer": {0, announcing}, "te": {0, onlyTE},
}

// longestKnown is the length of the longest of them, access-control-allow-origin.
const longestKnown = 27

// lookUp finds a name in any case of letters.
func lookUp(name string) knownName {
	if len(name) > longestKnown {
		return knownName{}
	}
	var lower [longestKnown]byte
	for i := range len(name) {
		lower[i] = toLower(name[i])
	}
	return knownNames[string(lower[:len(name)])]
}

func toLower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c |= 0x20
	}
	return c
}
