package http1

import (
	"math"
	"strings"
	"time"

	"edge/proxy/exchange"
)

const (
	errVersion       malformed = "not HTTP/1"
	errStatusLine    malformed = "invalid status line"
	errStatus        malformed = "status outside 100 to 599"
	errSwitch        malformed = "101 without a request for it"
	errLength        malformed = "invalid content-length"
	errLengths       malformed = "content-lengths that differ"
	errEncoding      malformed = "transfer-encoding other than chunked"
	errBoth          malformed = "transfer-encoding and content-length"
	errEncoding10    malformed = "transfer-encoding in HTTP/1.0"
	errEncodingEarly malformed = "transfer-encoding in an interim reply"
	errTrailerName   malformed = "trailer announces a field of the framing"
)

// framing says where the body of a reply ends (RFC 9112 6.3).
type framing uint8

const (
	noBody framing = iota
	byLength
	byChunks
	byClose
)

// replyHead is the head of a reply and what it means for the connection.
type replyHead struct {
	status  int
	fields  exchange.Fields
	framing framing
	length  int64 // as declared; -1 unknown
	keep    bool  // the connection survives the reply
	life    time.Duration
	// life is how long the server says it keeps an idle connection; -1 when it
	// does not.
}

// parseReply parses a complete head with the given number of lines, in answer
// to call. It takes nothing that net/http's ReadResponse refuses.
func parseReply(head string, lines int, call *exchange.Call) (replyHead, error) {
	line, rest := cutLine(head)
	minor, status, err := parseStatusLine(line)
	if err != nil {
		return replyHead{}, err
	}
	fields, err := parseFields(make(exchange.Fields, 0, max(lines-1, 0)), rest)
	if err != nil {
		return replyHead{}, err
	}
	h := replyHead{status: status, fields: fields}
	m, err := readMeta(fields)
	if err != nil {
		return replyHead{}, err
	}
	if err := m.check(minor, status, call.Upgrade); err != nil {
		return replyHead{}, err
	}
	h.frame(&m, minor, call.Method)
	return h, nil
}

const versionPrefix = "HTTP/1."

// parseStatusLine parses "HTTP/1.x SP 3DIGIT [SP reason]" (RFC 9112 4). The
// blank before a reason that is missing may be missing too. A status of no class
// is no answer that anybody understands (RFC 9110 15: treat it as a 5xx).
func parseStatusLine(line string) (minor, status int, err error) {
	switch {
	case !strings.HasPrefix(line, versionPrefix):
		return 0, 0, errVersion
	case len(line) < len("HTTP/1.1 200") || line[8] != ' ':
		return 0, 0, errStatusLine
	}
	minor = int(line[7]) - '0'
	if minor != 0 && minor != 1 {
		return 0, 0, errStatusLine
	}
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return 0, 0, errStatusLine
		}
		status = status*10 + int(c) - '0'
	}
	if reason := line[12:]; reason != "" && (reason[0] != ' ' || !isFieldValue(reason)) {
		return 0, 0, errStatusLine
	}
	if status < 100 || status > 599 {
		return 0, 0, errStatus
	}
	return minor, status, nil
}

// meta is what the fields say about the connection and the framing.
type meta struct {
	length    int64 // -1 without
	lengthRaw string
	encodings int
	chunked   bool
	close     bool
	keepAlive bool // "Connection: keep-alive"
	upgrade   bool // "Connection: upgrade"
	websocket bool
	framed    bool // a Trailer field announces a field of the framing
	life      time.Duration
}

func readMeta(fields exchange.Fields) (meta, error) {
	m := meta{length: -1, life: -1}
	for i := range fields {
		name, value := fields[i].Name, fields[i].Value
		switch len(name) {
		case len("upgrade"):
			m.readSeven(name, value)
		case len("connection"):
			m.readTen(name, value)
		case len("content-length"):
			if equalFold(name, "content-length") {
				if err := m.readLength(value); err != nil {
					return m, err
				}
			}
		case len("transfer-encoding"):
			if equalFold(name, "transfer-encoding") {
				m.encodings++
				m.chunked = equalFold(value, "chunked")
			}
		}
	}
	return m, nil
}

func (m *meta) readSeven(name, value string) {
	switch {
	case equalFold(name, "upgrade"):
		m.websocket = equalFold(value, "websocket")
	case equalFold(name, "trailer"):
		m.framed = m.framed || hasToken(value, "content-length") || hasToken(value, "transfer-encoding") || hasToken(value, "trailer")
	}
}

func (m *meta) readTen(name, value string) {
	switch {
	case equalFold(name, "connection"):
		m.close = m.close || hasToken(value, "close")
		m.keepAlive = m.keepAlive || hasToken(value, "keep-alive")
		m.upgrade = m.upgrade || hasToken(value, "upgrade")
	case equalFold(name, "keep-alive"):
		m.life = keepAliveLife(value)
	}
}

// readLength takes digits and nothing else. A repetition has to be the same to
// the letter (RFC 9112 6.3).
func (m *meta) readLength(value string) error {
	if m.length >= 0 {
		if value != m.lengthRaw {
			return errLengths
		}
		return nil
	}
	if value == "" {
		return errLength
	}
	n := int64(0)
	for _, c := range []byte(value) {
		d := int64(c) - '0'
		if d < 0 || d > 9 || n > (math.MaxInt64-d)/10 {
			return errLength
		}
		n = n*10 + d
	}
	m.length, m.lengthRaw = n, value
	return nil
}

// keepAliveLife is the timeout of a Keep-Alive field; -1 without one.
func keepAliveLife(value string) time.Duration {
	const maxSeconds = 1 << 20
	for value != "" {
		var param string
		param, value = nextToken(value)
		key, number, _ := strings.Cut(param, "=")
		if !equalFold(trimOWS(key), "timeout") {
			continue
		}
		n := 0
		for _, c := range []byte(trimOWS(number)) {
			if c < '0' || c > '9' {
				return -1
			}
			n = min(n*10+int(c)-'0', maxSeconds)
		}
		return time.Duration(n) * time.Second
	}
	return -1
}

// check refuses what two readers could understand in two ways.
func (m *meta) check(minor, status int, upgrade bool) error {
	switch {
	case m.encodings > 1 || m.encodings == 1 && !m.chunked:
		return errEncoding
	case m.encodings > 0 && m.length >= 0:
		return errBoth
	case m.encodings > 0 && minor == 0:
		return errEncoding10
	case m.encodings > 0 && status < 200:
		return errEncodingEarly
	case m.chunked && m.framed:
		return errTrailerName
	case status == statusSwitching:
		return m.checkSwitch(minor, upgrade)
	}
	return nil
}

func (m *meta) checkSwitch(minor int, upgrade bool) error {
	if !upgrade || minor == 0 || !m.upgrade || !m.websocket || m.length > 0 {
		return errSwitch
	}
	return nil
}

// Statuses with rules of their own.
const (
	statusContinue    = 100
	statusSwitching   = 101
	statusOK          = 200
	statusNoContent   = 204
	statusNotModified = 304
)

// frame decides on the body and on the life of the connection.
func (h *replyHead) frame(m *meta, minor int, method string) {
	h.length, h.life = m.length, m.life
	h.keep = !m.close && (minor == 1 || m.keepAlive)
	switch {
	case h.status < statusOK:
		h.length = 0
	case h.status == statusNoContent:
		// RFC 9112 6.3: no body, whatever is declared. Who declares one may send it.
		h.keep = h.keep && m.encodings == 0 && m.length <= 0
		h.length = 0
	case h.status == statusNotModified:
		h.length = max(h.length, 0)
	case method == methodHead:
	case m.chunked:
		h.framing = byChunks
	case m.length > 0:
		h.framing = byLength
	case m.length < 0:
		h.framing = byClose
		h.keep = false
	}
}
