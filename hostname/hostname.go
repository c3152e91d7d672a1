// Package hostname holds the rules for hosts, which are DNS names and IP
// addresses: their canonical form, what a wildcard covers, and which registrable
// domain a name belongs to. It is the only place in edge that compares them.
//
//	name, err := hostname.Parse("*.Bücher.example.") // "*.xn--bcher-kva.example"
//	hostname.Covers("*.example.com", "api.example.com") // true
//	hostname.Covers("*.example.com", "example.com")     // false: never the apex
//	hostname.Covers("*.example.com", "a.b.example.com") // false: one label
//
// Every function takes and returns hosts in canonical form unless it says
// otherwise: a name in ASCII (IDNA), lower case, without the final dot; an
// address as net/netip writes it (RFC 5952), without brackets and zone. No
// wildcard covers an address, and it has neither parent nor wildcard.
package hostname

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

const (
	maxName  = 253 // RFC 1035 section 2.3.4, without the final dot
	maxLabel = 63
)

// Parse returns the canonical form of s as a person writes it: any case, in
// Unicode or ASCII, with or without a final dot, with or without a leading
// "*." wildcard label (RFC 6125 section 6.4.3). IP addresses (see ParseIP),
// ports and names that DNS cannot hold are refused, and so is what ends in a
// number: browsers take it for an address (WHATWG URL section 3.5).
func Parse(s string) (string, error) {
	name, wildcard := strings.CutPrefix(strings.TrimSuffix(s, "."), "*.")
	switch {
	case name == "":
		return "", fmt.Errorf("host name %q is empty", s)
	case strings.Contains(name, "*"):
		return "", fmt.Errorf("host name %q: a wildcard is the whole first label, as in *.example.com", s)
	case strings.ContainsAny(name, ":/[]@ "):
		return "", fmt.Errorf("host name %q: want a name without scheme, port or path", s)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		if wildcard {
			return "", fmt.Errorf("host name %q: an IP address has no wildcard", s)
		}
		return "", fmt.Errorf("host name %q is an IP address", s)
	}
	if i := strings.IndexFunc(name, foreign); i >= 0 {
		r, _ := utf8.DecodeRuneInString(name[i:])
		return "", fmt.Errorf("host name %q: %q (%U) cannot be part of a name", s, r, r)
	}
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("host name %q: %w", s, err)
	}
	if err := check(ascii); err != nil {
		return "", fmt.Errorf("host name %q: %w", s, err)
	}
	if wildcard {
		return "*." + ascii, nil
	}
	return ascii, nil
}

// foreign reports whether no host name has r. IDNA's tables (UTS #46) let the
// punctuation and symbols of IDNA 2003 pass, typographic quotes for instance,
// which no registry sells since IDNA 2008 and no CA signs. What passes here is
// looked at by IDNA still.
func foreign(r rune) bool {
	if r < utf8.RuneSelf {
		return r != '-' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}
	const contextual = "·׳״・" // RFC 5892 appendix A
	const dots = "。．｡"        // UTS #46 section 2.3
	const joiners = "\u200c\u200d"
	return !unicode.In(r, unicode.L, unicode.M, unicode.Nd) && !strings.ContainsRune(contextual+dots+joiners, r)
}

// ParseIP returns the canonical form of an IP address as a person or a URL
// writes it: IPv6 with or without brackets. An IPv4 address in IPv6 clothes
// (RFC 4291 section 2.5.5.2) is the IPv4 address. It is false for names, for
// addresses with a zone, and for those that no host has: unspecified ones and
// multicast.
func ParseIP(s string) (string, bool) {
	inner, open := strings.CutPrefix(s, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	addr, err := netip.ParseAddr(inner)
	if err != nil || open != closed || open && addr.Is4() || addr.Zone() != "" {
		return "", false
	}
	addr = addr.Unmap()
	if addr.IsUnspecified() || addr.IsMulticast() {
		return "", false
	}
	return addr.String(), true
}

// IsIP reports whether host is an IP address. It does not allocate.
func IsIP(host string) bool {
	if strings.IndexByte(host, ':') >= 0 { // no name has one
		return true
	}
	if !endsInNumber(host) {
		return false
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// endsInNumber reports whether the last label has digits only.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	for i := range len(last) {
		if last[i] < '0' || last[i] > '9' {
			return false
		}
	}
	return last != ""
}

// check applies the length rules of RFC 1035 that IDNA leaves to DNS.
func check(ascii string) error {
	if len(ascii) > maxName {
		return fmt.Errorf("longer than %d characters", maxName)
	}
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > maxLabel {
			return fmt.Errorf("a label has 1 to %d characters", maxLabel)
		}
	}
	if endsInNumber(ascii) {
		return fmt.Errorf("it ends in a number, as only IP addresses do")
	}
	return nil
}

// FromHost returns the canonical host of a Host field, an :authority or a TLS
// server name: without the port and the final dot, in lower case; of an IPv6
// literal the address without brackets. It is false when host cannot be a
// host at all. It does not allocate when host is canonical already, and it does
// not do IDNA: what clients send is ASCII (RFC 9110 section 7.2, RFC 6066).
func FromHost(host string) (string, bool) {
	if strings.HasPrefix(host, "[") { // IPv6 literal
		end := strings.IndexByte(host, ']')
		if end < 0 || !validPort(host[end+1:]) {
			return "", false
		}
		return fromLiteral(host[1:end])
	}
	if colon := strings.IndexByte(host, ':'); colon >= 0 {
		if !validPort(host[colon:]) {
			return "", false
		}
		host = host[:colon]
	}
	return lower(strings.TrimSuffix(host, "."))
}

// fromLiteral returns the canonical form of what stands in brackets.
func fromLiteral(text string) (string, bool) {
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", false
	}
	var buffer [len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]byte
	canonical := addr.Unmap().AppendTo(buffer[:0])
	if string(canonical) == text {
		return text, true
	}
	return string(canonical), true
}

// lower checks the characters and labels of an ASCII name and lower-cases it.
func lower(name string) (string, bool) {
	if name == "" || len(name) > maxName {
		return "", false
	}
	upper, label := false, 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '.' && label > 0:
			label = -1
		case 'A' <= c && c <= 'Z':
			upper = true
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", false
		}
		if label++; label > maxLabel {
			return "", false
		}
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, true
}

// validPort accepts "" and ":" followed by digits (RFC 3986 section 3.2.3).
func validPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) > len(":65535") {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// IsWildcard reports whether name starts with a wildcard label.
func IsWildcard(name string) bool { return strings.HasPrefix(name, "*.") }

// Parent returns name without its first label: "b.c" for "a.b.c", "" for "c"
// and for an IP address.
func Parent(name string) string {
	if IsIP(name) {
		return ""
	}
	_, parent, _ := strings.Cut(name, ".")
	return parent
}

// Wildcard returns the only wildcard that can cover name: "*.b.c" for "a.b.c"
// and for "*.b.c" itself, "" for a name of one label and for an IP address.
func Wildcard(name string) string {
	parent := Parent(name)
	if parent == "" {
		return ""
	}
	return "*." + parent
}

// Covers reports whether a certificate or route for pattern is one for name:
// they are equal, or pattern is the wildcard of name's parent. A wildcard
// covers exactly one label, never the apex and never an IP address.
func Covers(pattern, name string) bool {
	if pattern == name {
		return true
	}
	return IsWildcard(pattern) && len(name) > 0 && pattern[len("*."):] == Parent(name)
}

// Zone returns the registrable domain of name (the public suffix and one
// label, https://publicsuffix.org), which is what CAs count limits by. A name
// that is a public suffix itself is its own zone, and so is an IP address.
func Zone(name string) string {
	if IsIP(name) {
		return name
	}
	name = strings.TrimPrefix(name, "*.")
	zone, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		return name
	}
	return zone
}
