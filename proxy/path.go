package proxy

import "strings"

// plainPath reports whether every backend reads path as edge does: no percent
// encoding, no backslash, no empty segment and none that starts with a dot.
// That is nearly every path, and it costs one pass.
func plainPath(path string) bool {
	for i := range len(path) {
		switch path[i] {
		case '%', '\\':
			return false
		case '/', '.':
			if i > 0 && path[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

// lenientPath returns path as the most lenient backend would read it: decoded
// once, a backslash taken for a slash, runs of slashes for one. It is false when
// the result has a dot segment (with or without parameters, "..;x", as servlet
// containers strip them), a control byte, or a broken triplet.
//
// edge matches and forwards the raw path and never rewrites it. What it must
// prevent is that a backend sees another path than the one that was routed, so
// the caller refuses a request whose two readings lead to different routes.
// "/v1/models/org%2Fname" stays legal: both readings are below /v1.
func lenientPath(path string) (string, bool) {
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
				return "", false
			}
			c = unhex(path[i+1])<<4 | unhex(path[i+2])
			i += 2
		}
		if c < ' ' || c == 0x7f {
			return "", false
		}
		if c == '\\' {
			c = '/'
		}
		if c == '/' && len(out) > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	clean := string(out)
	for segment := range strings.SplitSeq(clean, "/") {
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." {
			return "", false
		}
	}
	return clean, true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// validTarget reports whether a request target is in origin form and free of
// bytes that may end a line or start a fragment (RFC 9112 section 3.2.1). The
// HTTP/2 server lets spaces and "*" through in :path.
func validTarget(target string) bool {
	if target == "" || target[0] != '/' {
		return false
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f || c == '#' {
			return false
		}
	}
	return true
}
