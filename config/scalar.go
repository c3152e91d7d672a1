package config

import (
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"edge/hostname"
)

// The parsers below turn the text of a scalar into a value, or say why not.

const (
	day     = 24 * time.Hour
	forever = 365 * day // the longest duration that routes.yaml takes

	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// duration parses Go's durations with a d for days in front: "1d12h".
func duration(least, most time.Duration) func(string) (time.Duration, *refusal) {
	return func(text string) (time.Duration, *refusal) {
		if text == "off" {
			return 0, cannotBeOff()
		}
		rest := text
		var days time.Duration
		if head, tail, ok := strings.Cut(text, "d"); ok {
			n, err := strconv.ParseUint(head, 10, 16)
			if err != nil {
				return 0, badDuration(text)
			}
			days, rest = time.Duration(n)*day, tail
		}
		var d time.Duration
		if rest != "" || text == "" {
			var err error
			if d, err = time.ParseDuration(rest); err != nil || days > 0 && d < 0 {
				return 0, badDuration(text)
			}
		}
		if d > forever || d+days < least || d+days > most {
			return 0, outOfRange(text, readable(least), readable(most))
		}
		return d + days, nil
	}
}

// durationOrOff is duration with "off" for zero.
func durationOrOff(least, most time.Duration) func(string) (time.Duration, *refusal) {
	return func(text string) (time.Duration, *refusal) {
		if text == "off" {
			return 0, nil
		}
		return duration(least, most)(text)
	}
}

// readable writes a duration as routes.yaml would.
func readable(d time.Duration) string {
	if d >= day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if short, ok := strings.CutSuffix(text, zero); ok {
			text = short + zero[:1]
		}
	}
	return text
}

// size parses a number of bytes with a binary unit.
func size(least, most int64) func(string) (int64, *refusal) {
	return func(text string) (int64, *refusal) {
		unit := int64(1)
		number, ok := "", false
		for _, u := range []struct {
			suffix string
			bytes  int64
		}{{"KiB", kib}, {"MiB", mib}, {"GiB", gib}, {"B", 1}} {
			if number, ok = strings.CutSuffix(text, u.suffix); ok {
				unit = u.bytes
				break
			}
		}
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
		if !ok || err != nil {
			return 0, badSize(text)
		}
		if bytes := int64(n) * unit; bytes >= least && bytes <= most {
			return bytes, nil
		}
		return 0, outOfRange(text, readableSize(least), readableSize(most))
	}
}

// sizeOrOff is size with "off" for zero.
func sizeOrOff(least, most int64) func(string) (int64, *refusal) {
	return func(text string) (int64, *refusal) {
		if text == "off" {
			return 0, nil
		}
		return size(least, most)(text)
	}
}

func readableSize(n int64) string {
	for _, u := range []struct {
		suffix string
		bytes  int64
	}{{"GiB", gib}, {"MiB", mib}, {"KiB", kib}} {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// count parses a whole number from 1 up.
func count(most int) func(string) (int, *refusal) {
	return func(text string) (int, *refusal) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0, badInteger(text)
		}
		if n < 1 || n > most {
			return 0, outOfRange(text, "1", strconv.Itoa(most))
		}
		return n, nil
	}
}

// maxQuota bounds the count of a quota; no CA allows as many.
const maxQuota = 1_000_000

// quota parses a number of events in a time, as in 300/3h. A bare unit is one
// of it: 5/h.
func quota(text string) (Quota, *refusal) {
	if text == "off" {
		return Quota{Off: true}, nil
	}
	number, per, ok := strings.Cut(text, "/")
	if per == "s" || per == "m" || per == "h" || per == "d" {
		per = "1" + per
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || n == 0 || n > maxQuota {
		return Quota{}, badQuota(text)
	}
	window, r := duration(time.Second, forever)(per)
	if r != nil {
		return Quota{}, badQuota(text)
	}
	return Quota{Count: int(n), Per: window}, nil
}

// rate parses a quota into events a second.
func rate(text string) (float64, *refusal) {
	q, r := quota(text)
	if r != nil || q.Off {
		return 0, badRate(text)
	}
	return float64(q.Count) / q.Per.Seconds(), nil
}

// commonName is the name of a CA in its certificate, which X.520 bounds.
func commonName(text string) (string, *refusal) {
	if text == "" || len(text) > 64 || strings.ContainsFunc(text, unicode.IsControl) {
		return "", badCommonName(text)
	}
	return text, nil
}

// boolean takes true and false only, none of YAML 1.1's yes, on and y.
func boolean(text string) (bool, *refusal) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	default:
		return false, badBoolean(text)
	}
}

// choice takes one of the values; those that come later are not supported yet.
func choice[T ~string](values []T, later ...T) func(string) (T, *refusal) {
	return func(text string) (T, *refusal) {
		if slices.Contains(values, T(text)) {
			return T(text), nil
		}
		if slices.Contains(later, T(text)) {
			return "", notYetValue(text)
		}
		names := make([]string, len(values))
		for i, v := range values {
			names[i] = string(v)
		}
		return "", badChoice(text, names)
	}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// validName keeps names fit for logs, metrics, file names and storage keys.
func validName(name string) bool { return nameForm.MatchString(name) }

// word is a name that others chose: a profile, a region, a zone id.
func word(text string) (string, *refusal) {
	if !validName(text) {
		return "", badName(text)
	}
	return text, nil
}

// secret takes a reference. The text is not repeated: it may be the secret.
func (d *decoder) secret(text string) (Secret, *refusal) {
	kind, target := splitRef(text)
	switch kind {
	case "":
		return Secret{}, inlineSecret()
	case fromFile:
		target, _ = d.path(target)
	}
	return Secret{Ref: kind + target}, nil
}

// secretFile is secret where a bare path is clear enough.
func (d *decoder) secretFile(text string) (Secret, *refusal) {
	if kind, _ := splitRef(text); kind == "" && text != "" && !strings.ContainsAny(text, ":\n") && !strings.HasPrefix(text, "-----") {
		text = fromFile + text
	}
	return d.secret(text)
}

// host is a name or an IP address to route or to certify.
func host(text string) (string, *refusal) {
	if ip, ok := hostname.ParseIP(text); ok {
		return ip, nil
	}
	name, err := hostname.Parse(text)
	if err != nil {
		return "", badHost(text, err)
	}
	if parent := hostname.Parent(name); hostname.IsWildcard(name) && publicSuffix(parent) {
		return "", publicWildcard(name, parent)
	}
	return name, nil
}

// publicSuffix reports whether anybody can register names right below name. No
// registry hands out the special-use names (RFC 6761, RFC 6762, ICANN's internal).
func publicSuffix(name string) bool {
	switch name {
	case "test", "localhost", "internal", "local", "example", "invalid":
		return false
	}
	child := "x." + name // a registrable domain is its own zone
	return hostname.Zone(child) == child
}

// zone is the name of a DNS zone.
func zone(text string) (string, *refusal) {
	name, err := hostname.Parse(text)
	if err != nil {
		return "", badHost(text, err)
	}
	if hostname.IsWildcard(name) {
		return "", badZone(name)
	}
	return name, nil
}

// listenAddress is host:port as net.Listen takes it. The host may be empty.
func listenAddress(text string) (string, *refusal) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || !validPort(port, 0) || !validHost(host) && host != "" {
		return "", badAddress(text)
	}
	return text, nil
}

// serverAddress is host:port of a DNS server; the port is 53 when absent.
func serverAddress(text string) (string, *refusal) {
	if _, err := netip.ParseAddr(text); err == nil {
		return net.JoinHostPort(text, "53"), nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, "53"
	}
	if !validHost(host) || !validPort(port, 1) {
		return "", badAddress(text)
	}
	return net.JoinHostPort(host, port), nil
}

func validPort(text string, least uint64) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n >= least
}

// validHost accepts an IP address, also with a zone, and what DNS can hold.
func validHost(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	canonical, ok := hostname.FromHost(text)
	return ok && len(canonical) == len(strings.TrimSuffix(text, "."))
}

func prefix(text string) (Prefix, *refusal) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return Prefix{}, badPrefix(text)
	}
	return p.Masked(), nil
}

func email(text string) (string, *refusal) {
	a, err := mail.ParseAddress(text)
	if err != nil || a.Address != text {
		return "", badEmail(text)
	}
	return text, nil
}

// endpoint is the canonical scheme://host:port of a model server. The text is
// not repeated in the message, because a URL may hold a password.
func endpoint(text string) (string, *refusal) {
	u, err := url.Parse(text)
	if err != nil || !bare(u) || !validHost(u.Hostname()) {
		return "", badEndpoint()
	}
	port := u.Port()
	switch {
	case u.Scheme == "http" && port == "":
		port = "80"
	case u.Scheme == "https" && port == "":
		port = "443"
	case u.Scheme != "http" && u.Scheme != "https", !validPort(port, 1):
		return "", badEndpoint()
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), nil
}

// serverName is the name or the IP address that a certificate is for, in the
// form that TLS sends: ASCII, without a final dot (RFC 6066 section 3).
func serverName(text string) (string, *refusal) {
	if ip, ok := hostname.ParseIP(text); ok {
		return ip, nil
	}
	name, ok := hostname.FromHost(text)
	if !ok || strings.ContainsAny(text, ":[") {
		return "", badServerName(text)
	}
	return name, nil
}

// bare reports whether u has only a scheme and a host, perhaps a final slash.
func bare(u *url.URL) bool {
	return u.User == nil && u.Opaque == "" && (u.Path == "" || u.Path == "/") &&
		u.RawQuery == "" && !u.ForceQuery && u.Fragment == ""
}

// checkTarget is the path and query of a health check.
func checkTarget(text string) (string, *refusal) {
	if !strings.HasPrefix(text, "/") || strings.HasPrefix(text, "//") || !printable(text) || strings.Contains(text, "#") {
		return "", badTarget(text)
	}
	if _, err := url.ParseRequestURI(text); err != nil {
		return "", badTarget(text)
	}
	return text, nil
}

// pattern is a path to match: "/v1" with everything below, "=/v1" alone.
type pattern struct {
	path  string
	exact bool
}

func matchPath(text string) (pattern, *refusal) {
	path, exact := strings.CutPrefix(text, "=")
	switch {
	case !strings.HasPrefix(path, "/"), !printable(path), strings.ContainsAny(path, `?#%\*`),
		strings.Contains(path, "//"), strings.Contains(path+"/", "/./"), strings.Contains(path+"/", "/../"),
		!exact && path != "/" && strings.HasSuffix(path, "/"):
		return pattern{}, badPath(text)
	}
	return pattern{path, exact}, nil
}

func printable(text string) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] >= 0x7f {
			return false
		}
	}
	return true
}
