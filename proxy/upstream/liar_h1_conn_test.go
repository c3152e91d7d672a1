package upstream_test

import (
	"strings"
	"time"
)

func h1Interims() []lie {
	hints := h1("103 Early Hints", "Link: </a>")
	return []lie{
		tell("100", "9110 15.2.1", reply(200, "ok").after(100), say(h1("100 Continue")+sized("ok"))),
		tell("102", "9110 15.2", reply(200, "ok").after(102), say(h1("102 Processing")+sized("ok"))),
		tell("103", "9110 15.2", reply(200, "ok").after(103), say(hints), pause(time.Millisecond), say(sized("ok"))),
		tell("199 is unknown", "9110 15.2", reply(200, "ok").after(199), say(h1("199 Odd")+sized("ok"))),
		tell("eight", "9110 15.2", reply(200, "ok").after(103, 103, 103, 103, 103, 103, 103, 103), say(strings.Repeat(hints, 8)+sized("ok"))),
		tell("nine", "9110 15.2", refuses("interim").after(103, 103, 103, 103, 103, 103, 103, 103), say(strings.Repeat(hints, 9)+sized("ok"))),
		tell("no end", "9110 15.2", refuses("interim").after(100, 100, 100, 100, 100, 100, 100, 100), endless(h1("100 Continue"))),
		tell("slow without an end", "9110 15.2", fails(late, "").after(102, 102), say(h1("102 Processing")), pause(time.Second),
			say(h1("102 Processing")), pause(2*lieFirstByte), say(sized("ok"))),
		tell("with a length and no body", "9112 6.3", reply(200, "ok").after(103), say(h1("103 Early Hints", "Content-Length: 5")+sized("ok"))),
		tell("with a length and a body", "9112 6.3", refuses("not HTTP/1").after(103), say(h1("103 Early Hints", "Content-Length: 5")+"hello"+sized("ok"))),
		tell("with a coding and no body", "9112 6.1", refuses("transfer-encoding"), say(h1("103 Early Hints", "Transfer-Encoding: chunked")+sized("ok"))),
		tell("with a coding and a body", "9112 6.1", refuses("transfer-encoding"), say(h1("103 Early Hints", "Transfer-Encoding: chunked")+last+sized("ok"))),
		tell("with a bad name", "9110 5.1", refuses("field"), say(h1("103 Early Hints", "X Y: z")+sized("ok"))),
		tell("with Connection: close", "9112 9.6", reply(200, "ok").after(103).maybe(), say(h1("103 Early Hints", "Connection: close")+sized("ok"))),
		tell("from HTTP/1.0", "9110 15.2", reply(200, "ok").after(103).maybe(), say("HTTP/1.0 103 Early Hints\r\n\r\n"+sized("ok"))),
		tell("before a HEAD's reply", "9110 15.2", reply(200, "").after(103), say(hints+h1("200 OK", "Content-Length: 5"))).to("HEAD"),
		tell("100 to an upload", "9110 15.2.1", reply(200, "ok").after(100), say(h1("100 Continue")), readBody, say(sized("ok"))).posting().atOnce(),
		tell("behind the final reply", "9112 9.2", reply(200, "ok").once(), say(sized("ok")+h1("100 Continue"))),
	}
}

func h1Switching() []lie {
	const early = "early"
	websocket := h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket")
	return []lie{
		tell("unasked", "9110 15.2.2", refuses("101"), say(websocket)),
		tell("unasked, to a POST", "9110 15.2.2", refuses("101"), say(websocket)).posting(),
		tell("unasked and without Upgrade", "9110 15.2.2", refuses("101"), say(h1("101 Switching Protocols"))),
		tell("unasked to h2c", "9110 7.8", refuses("101"), say(h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: h2c"))),
		tell("unasked behind 100", "9110 15.2.2", refuses("101").after(100), say(h1("100 Continue")+websocket)),
		tell("asked", "9110 7.8", outcome{fate: tunnelled, status: 101, body: "ping\n", reuse: closed, seen: 1}, say(websocket), echo).upgrading(),
		tell("asked, in odd case", "9110 7.8", outcome{fate: tunnelled, status: 101, body: "ping\n", reuse: closed, seen: 1},
			say(h1("101 Switching Protocols", "connection: upgrade", "upgrade: WebSocket")), echo).upgrading(),
		tell("asked, with bytes behind the head", "9110 7.8", outcome{fate: tunnelled, status: 101, body: early + "ping\n", reuse: closed, seen: 1},
			say(websocket+early), echo).upgrading(),
		tell("asked, with a length", "9110 8.6", refuses("101"),
			say(h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2")+early), echo).upgrading(),
		tell("asked, without Upgrade", "9110 7.8", refuses("101"), say(h1("101 Switching Protocols", "Connection: Upgrade"))).upgrading(),
		tell("asked, to another protocol", "9110 7.8", refuses("101"), say(h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: h2c"))).upgrading(),
		tell("asked, to a list", "9110 7.8", refuses("101"), say(h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket, h2c"))).upgrading(),
		tell("asked, and refused", "9110 7.8", reply(200, "ok").maybe(), say(sized("ok"))).upgrading(),
		tell("asked, and refused with 426", "9110 15.5.22", reply(426, "").maybe(), say(h1("426 Upgrade Required", "Upgrade: websocket", "Content-Length: 0"))).upgrading(),
		tell("asked, and cut", "9112 8", fails(lost, ""), say("HTTP/1.1 101 Switching Protocols\r\nConn"), fin).upgrading(),
	}
}

func h1Bodiless() []lie {
	return []lie{
		tell("HEAD with a length", "9112 6.3", reply(200, "").declared(5), say(h1("200 OK", "Content-Length: 5"))).to("HEAD"),
		tell("HEAD with a body", "9112 6.3", reply(200, "").declared(5).once(), say(sized("hello"))).to("HEAD"),
		tell("HEAD with a body, next at once", "9112 6.3", reply(200, "").declared(5).once(), say(sized("hello"))).to("HEAD").hurried(),
		tell("HEAD with a reply as its body", "9112 6.3", reply(200, "").once(), say(h1("200 OK", "Content-Length: 44")+sized("poison"))).to("HEAD").hurried(),
		tell("HEAD with a coding", "9112 6.3", reply(200, ""), say(h1("200 OK", "Transfer-Encoding: chunked"))).to("HEAD"),
		tell("HEAD with a chunked body", "9112 6.3", reply(200, "").once(), say(chunked(last))).to("HEAD"),
		tell("HEAD without a length", "9112 6.3", reply(200, "").declared(-1), say(h1("200 OK"))).to("HEAD"),
		tell("HEAD with two different lengths", "9112 6.3", refuses("content-length"), say(h1("200 OK", "Content-Length: 5", "Content-Length: 6"))).to("HEAD"),
		tell("204", "9112 6.3", reply(204, ""), say(h1("204 No Content"))),
		tell("204 with a length", "9110 8.6", reply(204, "").maybe(), say(h1("204 No Content", "Content-Length: 5"))),
		tell("204 with a body", "9112 6.3", reply(204, "").once(), say(h1("204 No Content", "Content-Length: 5")+"hello")),
		tell("204 with a reply as its body", "9112 6.3", reply(204, "").once(), say(h1("204 No Content", "Content-Length: 44")+sized("poison"))).hurried(),
		tell("204 with a chunked body", "9112 6.1", reply(204, "").once(), say(h1("204 No Content", "Transfer-Encoding: chunked")+last)),
		tell("304", "9112 6.3", reply(304, ""), say(h1("304 Not Modified"))),
		tell("304 with a length", "9110 8.6", reply(304, "").declared(5), say(h1("304 Not Modified", "Content-Length: 5"))),
		tell("304 with a body", "9112 6.3", reply(304, "").once(), say(h1("304 Not Modified", "Content-Length: 5")+"hello")),
		tell("304 with a coding", "9112 6.3", reply(304, ""), say(h1("304 Not Modified", "Transfer-Encoding: chunked"))),
		tell("205 without a body", "9110 15.3.6", reply(205, ""), say(h1("205 Reset Content", "Content-Length: 0"))),
		tell("205 with a body keeps its framing", "9112 6.3", reply(205, "hello"), say(h1("205 Reset Content", "Content-Length: 5")+"hello")),
		tell("205 without a length", "9112 6.3", reply(205, "").once(), say(h1("205 Reset Content")), fin),
		tell("a length of zero", "9112 6.3", reply(200, ""), say(h1("200 OK", "Content-Length: 0"))),
		tell("a length of zero and a body", "9112 6.3", reply(200, "").once(), say(h1("200 OK", "Content-Length: 0")+"hello")),
	}
}

func h1Surplus() []lie {
	hello := reply(200, "hello").once()
	poison := h1("200 OK", "Content-Length: 6") + "poison"
	return []lie{
		tell("a byte", "9112 6.3", hello, say(sized("hello")+"!")),
		tell("a byte, next at once", "9112 6.3", hello, say(sized("hello")+"!")).hurried(),
		tell("a line end", "9112 6.3", hello, say(sized("hello")+"\r\n")),
		tell("a line end, next at once", "9112 6.3", hello, say(sized("hello")+"\r\n")).hurried(),
		tell("a reply", "9112 9.2", hello, say(sized("hello")+poison)),
		tell("a reply, next at once", "9112 9.2", hello, say(sized("hello")+poison)).hurried(),
		tell("a reply in a segment of its own", "9112 9.2", hello, say(sized("hello")), say(poison)),
		tell("a reply after a while", "9112 9.2", hello, say(sized("hello")), pause(lieSettle/2), say(poison)),
		tell("a reply behind chunks", "9112 9.2", hello, say(chunked("5\r\nhello\r\n"+last)+poison)).hurried(),
		tell("a reply behind trailers", "9112 9.2", hello.trailing("x: y\n"), say(chunked("5\r\nhello\r\n0\r\nX: y\r\n\r\n")+poison)).hurried(),
		tell("a reply behind a redirect", "9112 9.2", reply(302, "").once(), say(h1("302 Found", "Location: /", "Content-Length: 0")+poison)).hurried(),
		tell("408 while idle", "9110 15.5.9", hello, say(sized("hello")), pause(lieSettle/2),
			say(h1("408 Request Timeout", "Connection: close", "Content-Length: 0")), fin),
		tell("FIN while idle", "9112 9.5", hello, say(sized("hello")), pause(lieSettle/2), fin),
		tell("RST while idle", "9112 9.5", hello, say(sized("hello")), pause(lieSettle/2), rst),
		tell("64 KiB", "9112 6.3", hello, say(sized("hello")+strings.Repeat("x", 60<<10))),
		// On a new connection it cannot be told from a reply. Its request's own is then surplus.
		tell("a reply before the request", "9112 9.2", reply(200, "poison").once().orElse(refuses("")).orElse(fails(lost, "")),
			say(sized("right"))).greeted(say(poison)),
	}
}

func h1Early() []lie {
	large := h1("413 Content Too Large", "Content-Length: 5") + "large"
	answer := reply(413, "large").once()
	return []lie{
		tell("413 and reading on", "9112 9.5", answer, say(large)).uploading(),
		tell("413 and reading nothing", "9112 9.5", answer, say(large), pause(2*lieFirstByte)).uploading().slowly(),
		tell("413 and FIN", "9112 9.5", answer, say(large), fin).uploading(),
		tell("413 and RST a little later", "9112 9.6", answer, say(large), pause(lieSettle), rst).uploading(),
		tell("413 with Connection: close", "9112 9.6", answer, say(h1("413 Content Too Large", "Content-Length: 5", "Connection: close")+"large"), fin).uploading(),
		tell("413 to a client that stalls", "9112 9.5", answer, say(large)).stalling(),
		tell("413 in chunks", "9112 9.5", answer, say(h1("413 Content Too Large", "Transfer-Encoding: chunked")+"5\r\nlarge\r\n"+last)).uploading(),
		tell("413 cut", "9112 8", cuts("larg").coded(413), say(h1("413 Content Too Large", "Content-Length: 5")+"larg"), fin).uploading(),
		tell("417", "9110 15.5.18", reply(417, "").maybe(), say(h1("417 Expectation Failed", "Content-Length: 0"))).posting(),
		tell("200 while the upload goes on", "9112 9.3", reply(200, "ok").once(), say(sized("ok"))).uploading(),
		tell("200 and then the rest of the upload", "9112 9.3", reply(200, "ok").maybe(), say(sized("ok")), readBody).posting().atOnce(),
		tell("nothing, and reading nothing", "9110 15.6.5", fails(late, "no reply"), pause(3*lieFirstByte)).uploading(),
		tell("RST in an upload", "9112 9.5", fails(lost, ""), pause(time.Millisecond), rst).uploading(),
		tell("FIN in an upload", "9112 9.5", fails(lost, ""), pause(time.Millisecond), fin, pause(lieFirstByte)).uploading().slowly(),
		tell("garbage in an upload", "9112 4", refuses("not HTTP/1"), say("garbage\r\n\r\n")).uploading(),
		tell("101 in an upload", "9110 15.2.2", refuses("101"), say(h1("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"))).uploading(),
	}
}

func h1Persistence() []lie {
	with := func(name, rfc string, want outcome, fields ...string) lie {
		return tell(name, rfc, want, say(h1("200 OK", append(fields, "Content-Length: 2")...)+"ok"))
	}
	ok := reply(200, "ok")
	return []lie{
		with("close", "9112 9.6", ok.once(), "Connection: close"),
		with("Close", "9112 9.6", ok.once(), "connection: Close"),
		with("close in a list", "9112 9.6", ok.once(), "Connection: x, close"),
		with("close in the second line", "9112 9.6", ok.once(), "Connection: x", "Connection: close"),
		with("close and keep-alive", "9112 9.3", ok.once(), "Connection: keep-alive, close"),
		with("closed is another option", "9110 7.6.1", ok, "Connection: closed"),
		with("keep-alive", "9112 9.3", ok, "Connection: keep-alive"),
		with("Keep-Alive: timeout=5", "9112 9.3", ok.maybe(), "Connection: keep-alive", "Keep-Alive: timeout=5, max=100"),
		with("Keep-Alive: timeout=0", "9112 9.3", ok.maybe(), "Keep-Alive: timeout=0"),
		with("Keep-Alive: nonsense", "9112 9.3", ok, "Keep-Alive: timeout=banana, max=-1"),
		with("Proxy-Connection: close means nothing", "9110 7.6.1", ok, "Proxy-Connection: close"),
		with("Connection that names the length", "9110 7.6.1", ok.maybe(), "Connection: content-length"),
		with("Connection that names a field", "9110 7.6.1", ok.with("x-secret: 1"), "Connection: x-secret", "X-Secret: 1"),
		with("Connection: upgrade with 200", "9110 7.8", ok, "Connection: upgrade", "Upgrade: h2c"),
		with("empty Connection", "9110 7.6.1", ok, "Connection:"),
		with("close that is no token", "9110 7.6.1", ok.maybe(), "Connection: \"close\""),
		tell("HTTP/1.0", "9112 9.3", ok.once(), say("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")),
		tell("HTTP/1.0 and FIN", "9112 9.3", ok.once(), say("HTTP/1.0 200 OK\r\n\r\nok"), fin),
		tell("HTTP/1.0 with keep-alive", "9112 9.3", ok.maybe(), say("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")),
		tell("close, and the server stays", "9112 9.6", ok.once(), say(h1("200 OK", "Connection: close", "Content-Length: 2")+"ok")),
	}
}
