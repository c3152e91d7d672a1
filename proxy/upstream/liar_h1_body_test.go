package upstream_test

import (
	"strings"
	"time"
)

func h1Framing() []lie {
	length := func(name string, want outcome, lines ...string) lie {
		return tell(name, "9112 6.3", want, say(h1("200 OK", lines...)+"hello"), fin)
	}
	refusal, differ := refuses("invalid content-length"), refuses("content-lengths that differ")
	return []lie{
		length("length and coding", refuses("transfer-encoding and content-length"), "Content-Length: 5", "Transfer-Encoding: chunked"),
		length("coding and length", refuses("transfer-encoding and content-length"), "Transfer-Encoding: chunked", "Content-Length: 5"),
		length("two different lengths", differ, "Content-Length: 5", "Content-Length: 6"),
		length("three lengths, the last differs", differ, "Content-Length: 5", "Content-Length: 5", "Content-Length: 4"),
		length("list of two different lengths", refusal, "Content-Length: 5, 6"),
		length("two equal lengths", reply(200, "hello").once(), "Content-Length: 5", "Content-Length: 5"),
		length("list of two equal lengths", refusal, // RFC 9110 8.6 lets us take it
			"Content-Length: 5, 5"),
		length("equal in value only", differ, "Content-Length: 5", "Content-Length: 05"),
		length("length with a comma", refusal, "Content-Length: 5,"),
		length("length of nothing", refusal, "Content-Length:"),
		length("negative length", refusal, "Content-Length: -5"),
		length("length with a plus", refusal, "Content-Length: +5"),
		length("length in hex", refusal, "Content-Length: 0x5"),
		length("length of letters", refusal, "Content-Length: five"),
		length("length with a fraction", refusal, "Content-Length: 5.0"),
		length("length with an exponent", refusal, "Content-Length: 5e0"),
		length("length with a space", refusal, "Content-Length: 5 5"),
		length("length with an underscore", refusal, "Content-Length: 0_5"),
		length("length in quotes", refusal, "Content-Length: \"5\""),
		length("length with a parameter", refusal, "Content-Length: 5;q=1"),
		length("length beyond 63 bits", refusal, "Content-Length: 9223372036854775808"),
		length("length beyond 64 bits", refusal, "Content-Length: 18446744073709551621"),
		length("length of 400 digits", refusal, "Content-Length: "+strings.Repeat("9", 400)),
		length("length in arabic digits", refusal, "Content-Length: \xd9\xa5"),
		length("length with leading zeros", reply(200, "hello").once(), "Content-Length: 0005"),
		length("length with white space around", reply(200, "hello").once(), "Content-Length: \t5 \t"),
		length("name in odd case", reply(200, "hello").once(), "cOnTeNt-LeNgTh: 5"),
		length("length with a vertical tab", refuses("field value"), "Content-Length: \v5"),
		length("no length", reply(200, "hello").once()),
		length("underscore is another field", reply(200, "hello").once(), "Content_Length: 2"),
	}
}

func h1Codings() []lie {
	coding := func(name string, want outcome, lines ...string) lie {
		return tell(name, "9112 6.1", want, say(h1("200 OK", lines...)+"5\r\nhello\r\n0\r\n\r\n"), fin)
	}
	refusal := refuses("transfer-encoding")
	hello := reply(200, "hello").once()
	return []lie{
		coding("gzip", refusal, "Transfer-Encoding: gzip"),
		coding("gzip, chunked", refusal, "Transfer-Encoding: gzip, chunked"),
		coding("chunked, gzip", refusal, "Transfer-Encoding: chunked, gzip"),
		coding("chunked twice in a list", refusal, "Transfer-Encoding: chunked, chunked"),
		coding("chunked twice in lines", refusal, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
		coding("chunked and identity in lines", refusal, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
		coding("identity", refusal, "Transfer-Encoding: identity"),
		coding("empty", refusal, "Transfer-Encoding:"),
		coding("xchunked", refusal, "Transfer-Encoding: xchunked"),
		coding("chunkedx", refusal, "Transfer-Encoding: chunkedx"),
		coding("vertical tab before", refuses(""), "Transfer-Encoding: \vchunked"),
		coding("vertical tab behind", refuses(""), "Transfer-Encoding: chunked\v"),
		coding("no-break space", refusal, "Transfer-Encoding: \xa0chunked"),
		coding("soft hyphen", refusal, "Transfer-Encoding: chun\xc2\xadked"),
		coding("in quotes", refusal, "Transfer-Encoding: \"chunked\""),
		coding("with a parameter", refusal, "Transfer-Encoding: chunked;q=1"),
		coding("trailing comma", refusal, "Transfer-Encoding: chunked,"),
		coding("upper case", hello, "Transfer-Encoding: CHUNKED"),
		coding("mixed case", hello, "transfer-ENCODING: Chunked"),
		coding("white space around", hello, "Transfer-Encoding: \tchunked \t"),
		coding("te is not transfer-encoding", reply(200, "5\r\nhello\r\n0\r\n\r\n").once(), "TE: chunked"),
		tell("in HTTP/1.0", "9112 6.1", refusal, say("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), fin),
		tell("in HTTP/1.0 with a length", "9112 6.1", refuses(""), say("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello")),
		tell("of a 404 to HEAD", "9112 6.3", reply(404, "").maybe(), say(h1("404 Not Found", "Transfer-Encoding: chunked"))).to("HEAD"),
	}
}

const last = "0\r\n\r\n"

func h1ChunkSizes() []lie {
	size := func(name string, want outcome, line string) lie {
		return tell(name, "9112 7.1", want, say(chunked(line+"\r\nhello\r\n"+last)))
	}
	hello, bad := reply(200, "hello"), corrupts("", "chunk")
	return []lie{
		size("plain", hello, "5"),
		size("0x", bad, "0x5"),
		size("plus", bad, "+5"),
		size("negative", bad, "-5"),
		size("empty", bad, ""),
		size("letters", bad, "five"),
		size("underscore", bad, "0_5"),
		size("space before", bad, " 5"),
		size("tab before", bad, "\t5"),
		size("NUL behind", bad, "5\x00"),
		size("h suffix", bad, "5h"),
		size("fraction", bad, "5.0"),
		size("white space behind, as old servers write", hello, "5 \t"),
		size("leading zeros", hello, "0000005"),
		size("sixteen digits", hello, "0000000000000005"),
		size("seventeen digits", bad, "00000000000000005"),
		size("wraps 64 bits", bad, "10000000000000005"),
		size("wraps 32 bits", cuts("hello\r\n"+last), "100000005").ended(),
		size("63 bits", bad, "8000000000000005"),
		size("the largest", bad, "ffffffffffffffff"),
		size("endless zeros", bad, strings.Repeat("0", 10_000)+"5"),
		tell("upper case hex", "9112 7.1", reply(200, "hello hello"), say(chunked("B\r\nhello hello\r\n"+last))),
		tell("lower case hex", "9112 7.1", reply(200, "hello hello"), say(chunked("b\r\nhello hello\r\n"+last))),
		tell("last chunk of many zeros", "9112 7.1", hello, say(chunked("5\r\nhello\r\n000\r\n\r\n"))),
		tell("extension", "9112 7.1.1", hello, say(chunked("5;a=b;c\r\nhello\r\n0;z\r\n\r\n"))),
		tell("quoted extension", "9112 7.1.1", hello, say(chunked("5;a=\"b;c\\\"\"\r\nhello\r\n"+last))),
		// RFC 9112 7.1.1 allows it; nobody sends it, and net/http refuses it too.
		tell("extension with white space", "9112 7.1.1", bad, say(chunked("5 ; a = b\r\nhello\r\n"+last))),
		tell("extension with a bare LF", "9112 7.1.1", corrupts("", "chunk"), say(chunked("5;a\nhello\r\n"+last))),
		tell("extension with a bare CR", "9112 7.1.1", corrupts("", "chunk"), say(chunked("5;a\rb\r\nhello\r\n"+last))),
		tell("extension with NUL", "9112 7.1.1", corrupts("", "chunk"), say(chunked("5;a\x00\r\nhello\r\n"+last))),
		tell("extension without a semicolon", "9112 7.1.1", corrupts("", "chunk"), say(chunked("5 a=b\r\nhello\r\n"+last))),
		tell("quoted line end", "9112 7.1.1", corrupts("hello", "chunk"), say(chunked("5;a=\"\r\nhello\"\r\n"+last))),
		tell("endless extension", "9112 7.1.1", corrupts("", "chunk"), say(chunked("5;a=")), endless("x")),
		tell("endless extension of the last chunk", "9112 7.1.1", corrupts("hello", "chunk"), say(chunked("5\r\nhello\r\n0;a=")), endless("x")),
		tell("long extensions of tiny chunks", "9112 7.1.1", corrupts(strings.Repeat("x", lieBody), "chunk"),
			say(chunked("")), endless("1;"+strings.Repeat("a", 1000)+"\r\nx\r\n")),
	}
}

func h1ChunkEnds() []lie {
	end := func(name string, want outcome, raw string) lie {
		return tell(name, "9112 7.1", want, say(chunked(raw)))
	}
	bad := corrupts("hello", "chunk")
	return []lie{
		end("LF behind the size", corrupts("", "chunk"), "5\nhello\r\n"+last),
		end("LF behind the data", bad, "5\r\nhello\n"+last),
		end("LF everywhere", corrupts("", "chunk"), "5\nhello\n0\n\n"),
		end("LF behind the last chunk", bad, "5\r\nhello\r\n0\n\n"),
		end("LF behind the trailers", corrupts("hello", "trailer"), "5\r\nhello\r\n0\r\n\n"),
		end("CR behind the size", corrupts("", ""), "5\rhello\r\n"+last),
		end("data longer than its size", bad, "5\r\nhello!\r\n"+last),
		end("data longer by a chunk", bad, "5\r\nhello5\r\nhello\r\n"+last),
		end("data shorter than its size", corrupts("hello\r", ""), "6\r\nhello\r\n"+last),
		end("no line end behind the data", bad, "5\r\nhello"+last),
		end("two line ends behind the data", bad, "5\r\nhello\r\n\r\n"+last),
		end("text behind the last size", bad, "5\r\nhello\r\n0 garbage\r\n\r\n"),
		end("text instead of a size", bad, "5\r\nhello\r\ngarbage\r\n\r\n"),
		end("a reply instead of a chunk", bad, "5\r\nhello\r\n"+sized("poison")),
		end("bytes behind the end", reply(200, "hello").once(), "5\r\nhello\r\n"+last+"garbage"),
		end("a second last chunk", reply(200, "hello").once(), "5\r\nhello\r\n"+last+last),
		end("no body at all", reply(200, ""), last),
	}
}

func h1Trailers() []lie {
	trailer := func(name, rfc string, want outcome, lines string) lie {
		return tell(name, rfc, want, say(chunked("5\r\nhello\r\n0\r\n"+lines+"\r\n")))
	}
	hello, bad := reply(200, "hello"), func(reason string) outcome { return corrupts("hello", reason) }
	return []lie{
		trailer("one", "9112 7.1.2", hello.trailing("grpc-status: 0\n"), "Grpc-Status: 0\r\n"),
		trailer("two in order", "9112 7.1.2", hello.trailing("x: 1\nx: 2\n"), "X: 1\r\nX: 2\r\n"),
		trailer("no colon", "9112 7.1.2", bad("colon"), "garbage\r\n"),
		trailer("space before the colon", "9112 5.1", bad("name"), "X : 1\r\n"),
		trailer("empty name", "9110 5.1", bad("name"), ": 1\r\n"),
		trailer("control in a value", "9110 5.5", bad("value"), "X: a\x01\r\n"),
		trailer("NUL in a value", "9110 5.5", bad("value"), "X: a\x00\r\n"),
		trailer("bare CR in a value", "9112 2.2", bad("value"), "X: a\rb\r\n"),
		trailer("fold", "9112 5.2", bad("folded"), "X: a\r\n b\r\n"),
		trailer("first line folded", "9112 2.2", bad("folded"), " X: a\r\n"),
		trailer("a length is dropped", "9110 6.5.1", hello, "Content-Length: 3\r\n"),
		trailer("a coding is dropped", "9110 6.5.1", hello, "Transfer-Encoding: chunked\r\n"),
		trailer("a connection option is dropped", "9110 6.5.1", hello.maybe(), "Connection: close\r\n"),
		trailer("66 KiB", "9110 5.4", bad("trailer too large"), "X: "+strings.Repeat("x", 66<<10)+"\r\n"),
		trailer("ten thousand", "9110 5.4", bad("too many fields"), strings.Repeat("X: 1\r\n", 12_000)),
		tell("endless", "9110 5.4", bad("too many fields"), say(chunked("5\r\nhello\r\n0\r\n")), endless("X: y\r\n")),
		tell("endless name", "9110 5.4", bad("trailer too large"), say(chunked("5\r\nhello\r\n0\r\n")), endless("X")),
	}
}

func h1Truncation() []lie {
	ends := func(name string, want outcome, said string) []lie {
		return []lie{
			tell(name+", FIN", "9112 8", want, say(said), fin),
			tell(name+", RST", "9112 8", want, say(said), pause(time.Millisecond), rst),
		}
	}
	var table []lie
	for _, pair := range [][]lie{
		ends("length short by one", cuts("hell"), h1("200 OK", "Content-Length: 5")+"hell"),
		ends("length of a head without a body", cuts(""), h1("200 OK", "Content-Length: 5")),
		ends("chunked without a chunk", cuts(""), chunked("")),
		ends("in a chunk size", cuts(""), chunked("5")),
		ends("behind the CR of a chunk size", cuts(""), chunked("5\r")),
		ends("in chunk data", cuts("hell"), chunked("5\r\nhell")),
		ends("before the line end of a chunk", cuts("hello"), chunked("5\r\nhello")),
		ends("in the line end of a chunk", cuts("hello"), chunked("5\r\nhello\r")),
		ends("between chunks", cuts("hello"), chunked("5\r\nhello\r\n")),
		ends("behind the last size", cuts("hello"), chunked("5\r\nhello\r\n0")),
		ends("before the trailers", cuts("hello"), chunked("5\r\nhello\r\n0\r\n")),
		ends("in a trailer", cuts("hello"), chunked("5\r\nhello\r\n0\r\nX: y")),
		ends("behind a trailer", cuts("hello"), chunked("5\r\nhello\r\n0\r\nX: y\r\n")),
		ends("in the last line end", cuts("hello"), chunked("5\r\nhello\r\n0\r\n\r")),
		ends("in the status line", fails(lost, ""), "HTTP/1.1 20"),
		ends("behind the status line", fails(lost, ""), "HTTP/1.1 200 OK\r\n"),
		ends("in a field", fails(lost, ""), "HTTP/1.1 200 OK\r\nX: y"),
		ends("before the empty line", fails(lost, ""), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
		ends("behind an interim reply", fails(lost, "").after(103), h1("103 Early Hints")),
	} {
		table = append(table, pair...)
	}
	return append(table,
		tell("no length, FIN", "9112 6.3", reply(200, "hello").once(), say(h1("200 OK")+"hello"), fin),
		tell("no length, RST", "9112 8", cuts("hello"), say(h1("200 OK")+"hello"), pause(time.Millisecond), rst),
		tell("no length and no body", "9112 6.3", reply(200, "").once(), say(h1("200 OK")), fin),
		tell("FIN instead of a reply to GET", "9110 9.2.2", reply(200, "").elsewhere(), fin),
		tell("RST instead of a reply to GET", "9110 9.2.2", reply(200, "").elsewhere(), rst),
		tell("FIN instead of a reply to POST", "9110 9.2.2", fails(lost, ""), fin).posting(),
		tell("RST instead of a reply to POST", "9110 9.2.2", fails(lost, ""), rst).posting(),
		tell("FIN instead of a reply to DELETE", "DESIGN 4", fails(lost, ""), fin).to("DELETE"),
		tell("FIN behind a byte of a reply to GET", "9110 9.2.2", fails(lost, ""), say("H"), fin),
		tell("a complete reply and RST", "9112 9.6", reply(200, "hello").once(), say(sized("hello")), pause(time.Millisecond), rst),
		tell("a complete reply and FIN", "9112 9.6", reply(200, "hello").once(), say(sized("hello")), fin),
		tell("a length of 1 TiB and FIN", "9112 8", cuts("hello"), say(h1("200 OK", "Content-Length: 1099511627776")+"hello"), fin),
	)
}
