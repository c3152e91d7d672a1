package upstream_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// h1 is the head of an HTTP/1.1 reply.
func h1(status string, fields ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(append(fields, "", ""), "\r\n")
}

// sized is a whole reply of 200.
func sized(body string) string {
	return h1("200 OK", "Content-Length: "+itoa(len(body))) + body
}

// chunked is a reply of 200 whose chunked body is what is said.
func chunked(raw string) string { return h1("200 OK", "Transfer-Encoding: chunked") + raw }

func itoa(n int) string {
	if n >= 10 {
		return itoa(n/10) + itoa(n%10)
	}
	return string(rune('0' + n))
}

// speakH1 reads requests properly and answers as the lie says.
func speakH1(s *liar, c net.Conn, first bool) {
	t := &turn{server: s, conn: c, write: func(p string) error {
		_, err := io.WriteString(c, p)
		return err
	}}
	if s.lie != nil && first && t.run(s.lie.greeting) != nil {
		return
	}
	r := bufio.NewReader(c)
	t.in = r
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		t.body = req.Body
		lying := req.URL.Path == "/case" && s.lies(s.seen.Add(1))
		if (!lying || !s.lie.early) && readBody(t) != nil {
			return
		}
		switch {
		case lying:
			err = t.tell()
		case req.URL.Path == "/case":
			err = t.write(sized("again"))
		default:
			err = t.write(sized("next"))
		}
		if err != nil || readBody(t) != nil {
			return
		}
	}
}

// echo returns one line on a tunnel.
func echo(t *turn) error {
	line, err := t.in.ReadString('\n')
	if err != nil {
		return err
	}
	return t.write(line)
}

func h1Lies() map[string][]lie {
	return map[string][]lie{
		"status line":  h1StatusLines(),
		"line ends":    h1LineEnds(),
		"field names":  h1Names(),
		"field values": h1Values(),
		"size of head": h1Sizes(),
		"interim":      h1Interims(),
		"switching":    h1Switching(),
		"framing":      h1Framing(),
		"codings":      h1Codings(),
		"chunk sizes":  h1ChunkSizes(),
		"chunk ends":   h1ChunkEnds(),
		"trailers":     h1Trailers(),
		"truncation":   h1Truncation(),
		"no body":      h1Bodiless(),
		"surplus":      h1Surplus(),
		"early":        h1Early(),
		"persistence":  h1Persistence(),
	}
}

func TestLiesOfHTTP1(t *testing.T) {
	for family, table := range h1Lies() {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			tellAll(t, table, speakH1, nil)
		})
	}
}

func TestLiesOfHTTP1OverLoopback(t *testing.T) {
	for _, family := range []string{"truncation", "no body", "surplus", "early", "switching"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			tellOver(t, h1Lies()[family], speakH1, nil)
		})
	}
}

func h1StatusLines() []lie {
	const rest = "\r\nContent-Length: 2\r\n\r\nok"
	return []lie{
		tell("well-formed", "9112 4", reply(200, "ok").declared(2), say("HTTP/1.1 200 OK"+rest)),
		tell("HTTP/0.9: a body at once", "9112 4", refuses("not HTTP/1"), say("<html>hello</html>\r\n"), fin),
		tell("HTTP/0.9 without a line end", "9112 4", refuses("not HTTP/1"), say("hello"), fin).posting(),
		tell("another protocol", "9112 4", refuses("not HTTP/1"), say("SSH-2.0-OpenSSH_9.2\r\n")),
		tell("HTTP/2.0", "9112 2.3", refuses("not HTTP/1"), say("HTTP/2.0 200 OK"+rest)),
		tell("HTTP/0.9 by name", "9112 2.3", refuses("not HTTP/1"), say("HTTP/0.9 200 OK"+rest)),
		// There is none. RFC 9110 2.5 would read it as 1.1.
		tell("HTTP/1.2", "9110 2.5", refuses("status line"), say("HTTP/1.2 200 OK"+rest)),
		tell("HTTP/1.10", "9112 2.3", refuses("status line"), say("HTTP/1.10 200 OK"+rest)),
		tell("HTTP/1", "9112 2.3", refuses("not HTTP/1"), say("HTTP/1 200 OK"+rest)),
		tell("HTTP/11.1", "9112 2.3", refuses("not HTTP/1"), say("HTTP/11.1 200 OK"+rest)),
		tell("HTTP/1.a", "9112 2.3", refuses("status line"), say("HTTP/1.a 200 OK"+rest)),
		tell("lower case", "9112 2.3", refuses("not HTTP/1"), say("http/1.1 200 OK"+rest)),
		tell("ICY", "9112 2.3", refuses("not HTTP/1"), say("ICY 200 OK"+rest)),
		tell("one digit", "9110 15", refuses("status"), say("HTTP/1.1 2 OK"+rest)),
		tell("two digits", "9110 15", refuses("status"), say("HTTP/1.1 20 OK"+rest)),
		tell("four digits", "9110 15", refuses("status"), say("HTTP/1.1 2000 OK"+rest)),
		tell("letters", "9110 15", refuses("status"), say("HTTP/1.1 2xx OK"+rest)),
		tell("a sign", "9110 15", refuses("status"), say("HTTP/1.1 +20 OK"+rest)),
		tell("status 000", "9110 15", refuses("status"), say("HTTP/1.1 000 OK"+rest)),
		tell("status 099", "9110 15", refuses("status"), say("HTTP/1.1 099 OK"+rest)),
		tell("status 600 is of no class", "9110 15", refuses("status"), say("HTTP/1.1 600 Odd"+rest)),
		tell("status 299 is unknown", "9110 15", reply(299, "ok"), say("HTTP/1.1 299 Odd"+rest)),
		tell("no status", "9112 4", refuses("status"), say("HTTP/1.1"+rest)),
		tell("no status but a space", "9112 4", refuses("status"), say("HTTP/1.1 "+rest)),
		tell("no reason", "9112 4", reply(200, "ok"), say("HTTP/1.1 200 "+rest)),
		tell("no reason and no space", "9112 4", reply(200, "ok"), say("HTTP/1.1 200"+rest)),
		tell("reason right behind the status", "9112 4", refuses("status"), say("HTTP/1.1 200OK"+rest)),
		tell("reason with obs-text", "9112 4", reply(200, "ok"), say("HTTP/1.1 200 \xc3\xbcber\xff"+rest)),
		tell("reason with a tab", "9112 4", reply(200, "ok"), say("HTTP/1.1 200 O\tK"+rest)),
		tell("reason with NUL", "9112 4", refuses("status line"), say("HTTP/1.1 200 O\x00K"+rest)),
		tell("reason with a bare CR", "9112 2.2", refuses("status line"), say("HTTP/1.1 200 O\rK"+rest)),
		tell("leading space", "9112 4", refuses("not HTTP/1"), say(" HTTP/1.1 200 OK"+rest)),
		tell("leading empty line", "9112 4", refuses("not HTTP/1"), say("\r\nHTTP/1.1 200 OK"+rest)),
		tell("leading NUL", "9112 4", refuses("not HTTP/1"), say("\x00HTTP/1.1 200 OK"+rest)),
		tell("byte order mark", "9112 4", refuses("not HTTP/1"), say("\xef\xbb\xbfHTTP/1.1 200 OK"+rest)),
		tell("tabs for spaces", "9112 4", refuses("status line"), say("HTTP/1.1\t200\tOK"+rest)),
		tell("two spaces", "9112 4", refuses("status"), say("HTTP/1.1  200 OK"+rest)),
		tell("a request", "9112 4", refuses("not HTTP/1"), say("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
		tell("a frame of HTTP/2", "9112 4", refuses("not HTTP/1"), say("\x00\x00\x00\x04\x00\x00\x00\x00\x00"), fin),
		tell("a TLS alert", "9112 4", refuses("not HTTP/1"), say("\x15\x03\x01\x00\x02\x02\x46"), fin),
	}
}

func h1LineEnds() []lie {
	return []lie{
		// RFC 9112 2.2 allows a bare LF. Who takes it disagrees with somebody.
		tell("LF only", "9112 2.2", refuses("line feed"), say("HTTP/1.1 200 OK\nContent-Length: 2\n\nok")),
		tell("LF in one field line", "9112 2.2", refuses("line feed"), say("HTTP/1.1 200 OK\r\nContent-Length: 2\nX: y\r\n\r\nok")),
		tell("LF before the body", "9112 2.2", refuses("line feed"), say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok")),
		tell("CR only", "9112 2.2", fails(lost, ""), say("HTTP/1.1 200 OK\rContent-Length: 2\r\rok"), fin),
		tell("CR CR LF", "9112 2.2", refuses(""), say("HTTP/1.1 200 OK\r\r\nContent-Length: 2\r\r\n\r\nok")),
		tell("LF CR", "9112 2.2", refuses(""), say("HTTP/1.1 200 OK\n\rContent-Length: 2\n\r\n\rok"), fin),
		tell("form feed", "9112 2.2", refuses(""), say("HTTP/1.1 200 OK\r\nContent-Length: 2\f\r\n\r\nok")),
		tell("fold in a field", "9112 5.2", refuses("folded"), say("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok")),
		tell("fold with a tab", "9112 5.2", refuses("folded"), say("HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nContent-Length: 2\r\n\r\nok")),
		tell("fold in the length", "9112 5.2", refuses("folded"), say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 2\r\n\r\nok")),
		tell("fold hides the length", "9112 5.2", refuses("folded"), say("HTTP/1.1 200 OK\r\nX: a\r\n Content-Length: 2\r\n\r\nok")),
		tell("fold of the first field", "9112 2.2", refuses("folded"), say("HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 2\r\n\r\nok")),
		tell("fold of nothing", "9112 5.2", refuses("folded"), say("HTTP/1.1 200 OK\r\nX: a\r\n \r\nContent-Length: 2\r\n\r\nok")),
	}
}

func h1Names() []lie {
	bad := func(name, rfc, line string) lie {
		return tell(name, rfc, refuses("field"), say("HTTP/1.1 200 OK\r\n"+line+"\r\nContent-Length: 2\r\n\r\nok"))
	}
	return []lie{
		bad("space before the colon", "9112 5.1", "X : y"),
		bad("tab before the colon", "9112 5.1", "X\t: y"),
		bad("space before the colon of a length", "9112 5.1", "Content-Length : 5"),
		bad("space before the colon of a coding", "9112 5.1", "Transfer-Encoding : chunked"),
		bad("empty name", "9110 5.1", ": y"),
		bad("no colon", "9112 5", "X"),
		bad("space in a name", "9110 5.1", "X Y: z"),
		bad("control in a name", "9110 5.1", "X\x01Y: z"),
		bad("NUL in a name", "9110 5.1", "X\x00: z"),
		bad("bare CR in a name", "9112 2.2", "X\rY: z"),
		bad("parenthesis in a name", "9110 5.1", "X(a): z"),
		bad("slash in a name", "9110 5.1", "X/a: z"),
		bad("quotes around a name", "9110 5.1", "\"Content-Length\": 5"),
		bad("obs-text in a name", "9110 5.1", "\xc3\xbc: z"),
		bad("DEL in a name", "9110 5.1", "X\x7f: z"),
		bad("pseudo-header of HTTP/2", "9110 5.1", ":status: 500"),
		tell("every character of a token", "9110 5.6.2", reply(200, "ok").with("!#$%&'*+-.^_`|~09az: y"),
			say(h1("200 OK", "!#$%&'*+-.^_`|~09Az: y", "Content-Length: 2")+"ok")),
		tell("two equal names keep their order", "9110 5.3", reply(200, "ok").with("x: 1\nx: 2"),
			say(h1("200 OK", "X: 1", "x: 2", "Content-Length: 2")+"ok")),
	}
}

func h1Values() []lie {
	bad := func(name, rfc, line string) lie {
		return tell(name, rfc, refuses("field"), say("HTTP/1.1 200 OK\r\n"+line+"\r\nContent-Length: 2\r\n\r\nok"))
	}
	good := func(name, rfc, line, want string) lie {
		return tell(name, rfc, reply(200, "ok").with(want), say("HTTP/1.1 200 OK\r\n"+line+"\r\nContent-Length: 2\r\n\r\nok"))
	}
	return []lie{
		bad("NUL in a value", "9110 5.5", "X: a\x00b"),
		bad("bare CR in a value", "9110 5.5", "X: a\rb"),
		bad("bare CR hides a field", "9112 2.2", "X: a\rTransfer-Encoding: chunked"),
		bad("bare CR at the end of a value", "9112 2.2", "X: a\r"),
		bad("control in a value", "9110 5.5", "X: a\x01b"),
		bad("escape in a value", "9110 5.5", "X: a\x1b[31mb"),
		bad("DEL in a value", "9110 5.5", "X: a\x7fb"),
		bad("vertical tab in a value", "9110 5.5", "X: a\vb"),
		good("tab in a value", "9110 5.5", "X: a\tb", "x: a\tb"),
		good("obs-text in a value", "9110 5.5", "X: \xc3\xbc\xff", "x: \xc3\xbc\xff"),
		good("empty value", "9110 5.5", "X:", "x: "),
		good("white space around a value", "9110 5.5", "X: \t a b \t", "x: a b"),
		good("no space behind the colon", "9112 5", "X:y", "x: y"),
		good("colons in a value", "9112 5", "X: a:b::c", "x: a:b::c"),
	}
}

func h1Sizes() []lie {
	long := strings.Repeat("x", 60<<10)
	return []lie{
		tell("60 KiB of one field", "9110 5.4", reply(200, "ok").with("x: "+long), say(h1("200 OK", "X: "+long, "Content-Length: 2")+"ok")),
		tell("66 KiB of one field", "9110 5.4", refuses("head"), say(h1("200 OK", "X: "+long+long[:6<<10], "Content-Length: 2")+"ok")),
		tell("66 KiB of fields", "9110 5.4", refuses(""), say(h1("200 OK", strings.Repeat("X: "+long[:1<<10]+"\r\n", 66), "Content-Length: 2")+"ok")),
		tell("66 KiB of fields of an interim reply", "9110 5.4", refuses("head"), say(h1("103 Early Hints", "X: "+long+long[:6<<10])+sized("ok"))),
		tell("a hundred fields", "9110 5.4", reply(200, "ok").with("x: 1"), say("HTTP/1.1 200 OK\r\n"+strings.Repeat("X: 1\r\n", 100)+"Content-Length: 2\r\n\r\nok")),
		tell("ten thousand fields", "9110 5.4", refuses(""), say("HTTP/1.1 200 OK\r\n"+strings.Repeat("X: 1\r\n", 10_000)+"Content-Length: 2\r\n\r\nok")),
		tell("endless reason", "9110 5.4", refuses("head"), say("HTTP/1.1 200 "), endless("O")),
		tell("endless field name", "9110 5.4", refuses("head"), say("HTTP/1.1 200 OK\r\n"), endless("X")),
		tell("endless field value", "9110 5.4", refuses("head"), say("HTTP/1.1 200 OK\r\nX: "), endless("x")),
		tell("endless fields", "9110 5.4", refuses(""), say("HTTP/1.1 200 OK\r\n"), endless("X: y\r\n")),
		tell("endless folds", "9110 5.4", refuses(""), say("HTTP/1.1 200 OK\r\nX: y\r\n"), endless(" z\r\n")),
		tell("endless noise without a line end", "9112 4", refuses(""), endless("\x00")),
		tell("no head at all", "9110 15.6.5", fails(late, "no reply"), pause(2*lieFirstByte)),
		tell("a head that drips", "9110 15.6.5", fails(late, "no reply"), drip(sized("ok"), lieFirstByte/4)),
		tell("a head that stops", "9110 15.6.5", fails(late, "no reply"), say("HTTP/1.1 200 OK\r\nX"), pause(2*lieFirstByte)),
		tell("a head in single bytes", "9112 2.1", reply(200, "ok"), drip(sized("ok"), time.Millisecond)),
	}
}
