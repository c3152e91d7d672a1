package upstream_test

import (
	"strings"
	"time"
)

func h2Blocks() []lie {
	ok := reply(200, "ok")
	bad := breaks("PROTOCOL_ERROR")
	status := block(":status", "200")
	big := block("x", strings.Repeat("x", 15<<10))
	first := frame(fHeaders, 0, 1, status)
	done := frame(fContinuation, endHeaders, 1, block("x", "y"))
	return []lie{
		says2("in two frames", "6.10", ok.with("x: y"), first, done, lastData("ok")),
		says2("split within a field", "6.10", ok, frame(fHeaders, 0, 1, status[:4]), frame(fContinuation, endHeaders, 1, status[4:]), lastData("ok")),
		says2("in an empty frame and another", "6.10", ok, frame(fHeaders, 0, 1, ""), frame(fContinuation, endHeaders, 1, status), lastData("ok")),
		says2("in single bytes", "10.5.1", refuses("too many CONTINUATION"), frame(fHeaders, 0, 1, status[:1]), inBytes(status[1:]), lastData("ok")),
		says2("interrupted by DATA", "6.10", bad, first, lastData("ok"), done),
		says2("interrupted by PING", "6.10", bad, first, frame(fPing, 0, 0, "12345678"), done, lastData("ok")),
		says2("interrupted by an unknown frame", "6.10", bad, first, frame(0x42, 0, 1, ""), done, lastData("ok")),
		says2("interrupted by HEADERS", "6.10", bad, first, okay()),
		says2("interrupted by another stream's", "6.10", bad, first, frame(fContinuation, endHeaders, 3, ""), lastData("ok")),
		says2("CONTINUATION of nothing", "6.10", bad, done, okay()),
		says2("CONTINUATION behind the end", "6.10", bad, head2(":status", "200"), done, lastData("ok")).expect(corrupts("", "").orElse(bad)),
		tell2("never ended", "10.5", fails(late, "").orElse(refuses("")).maybe(), say(first), pause(2*lieFirstByte)),
		says2("padding", "6.2", ok, frame(fHeaders, endHeaders|padded, 1, "\x05"+status+"\x00\x00\x00\x00\x00"), lastData("ok")),
		says2("padding that is not zero", "6.1", ok, frame(fHeaders, endHeaders|padded, 1, "\x05"+status+"12345"), lastData("ok")).
			expect(ok.orElse(bad)),
		says2("padding of all", "6.2", refuses("not one :status"), frame(fHeaders, endHeaders|padded, 1, "\x05\x00\x00\x00\x00\x00"), lastData("ok")).maybeKept(),
		says2("padding longer than the frame", "6.2", bad, frame(fHeaders, endHeaders|padded, 1, "\xff"+status), lastData("ok")),
		says2("padding without its length", "6.2", refuses("too short"), frame(fHeaders, endHeaders|padded, 1, ""), lastData("ok")),
		says2("priority", "6.2", ok, frame(fHeaders, endHeaders|prioritized, 1, u32(0)+"\x10"+status), lastData("ok")),
		says2("priority cut", "6.2", refuses("too short"), frame(fHeaders, endHeaders|prioritized, 1, "\x00\x00"), lastData("ok")),
		says2("45 KiB of fields", "6.5.2", ok, frame(fHeaders, 0, 1, status), frame(fContinuation, 0, 1, big), frame(fContinuation, 0, 1, big),
			frame(fContinuation, endHeaders, 1, big), lastData("ok")),
		says2("75 KiB of fields", "6.5.2", refuses("header list too large"), frame(fHeaders, 0, 1, status), strings.Repeat(frame(fContinuation, 0, 1, big), 5),
			frame(fContinuation, endHeaders, 1, ""), lastData("ok")).maybeKept(),
		says2("150 KiB of fields", "6.5.2", refuses("too many CONTINUATION"), frame(fHeaders, 0, 1, status), strings.Repeat(frame(fContinuation, 0, 1, big), 10),
			frame(fContinuation, endHeaders, 1, ""), lastData("ok")).maybeKept(),
		says2("three thousand small fields", "6.5.2", refuses("header list too large"), frame(fHeaders, 0, 1, status),
			frame(fContinuation, endHeaders, 1, strings.Repeat(block("x", "y"), 3000)), lastData("ok")).maybeKept(),
	}
}

// inBytes is a CONTINUATION frame for each byte.
func inBytes(s string) string {
	var b strings.Builder
	for i := range len(s) {
		flags := byte(0)
		if i == len(s)-1 {
			flags = endHeaders
		}
		b.WriteString(frame(fContinuation, flags, 1, s[i:i+1]))
	}
	return b.String()
}

func h2Compression() []lie {
	ok := reply(200, "ok")
	bad := breaks("COMPRESSION_ERROR")
	coded := func(name, rfc string, want outcome, raw string) lie {
		l := says2(name, "4.3", want, frame(fHeaders, endHeaders, 1, raw), lastData("ok"))
		l.rfc = rfc
		return l
	}
	return []lie{
		coded("indexed status", "7541 6.1", ok, "\x88"),
		coded("a literal for the table, and used", "7541 6.2.1", ok.with("x: y\nx: y"), "\x88\x40\x01x\x01y\xbe"),
		coded("Huffman", "7541 5.2", ok.with("x: a"), "\x88\x00\x01x\x81\x1f"),
		coded("never indexed", "7541 6.2.3", ok.with("x: y"), "\x88\x10\x01x\x01y"),
		coded("index 0", "7541 6.1", bad, "\x80"),
		coded("index beyond the table", "7541 2.3.3", bad, "\x88\xbe"),
		coded("index far beyond the table", "7541 2.3.3", bad, "\x88\xff\xff\x7f"),
		coded("an index without an end", "7541 5.1", bad, "\x88\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
		coded("cut in a name", "7541 5.2", bad, "\x88\x00\x05x"),
		coded("cut in a value", "7541 5.2", bad, "\x88\x00\x01x\x05y"),
		coded("cut behind a name", "7541 6.2.2", bad, "\x88\x00\x01x"),
		coded("a length of 2^31", "7541 5.2", refuses(""), "\x88\x00\x01x\x7f\x81\xff\xff\xff\x07"),
		coded("Huffman with the end of string", "7541 5.2", bad, "\x88\x00\x01x\x84\xff\xff\xff\xff"),
		coded("Huffman with long padding", "7541 5.2", bad, "\x88\x00\x01x\x82\x1f\xff"),
		coded("Huffman with zeros for padding", "7541 5.2", bad, "\x88\x00\x01x\x81\x18"),
		coded("table size 0", "7541 6.3", ok, "\x20\x88"),
		coded("table size 4096", "7541 6.3", ok, "\x3f\xe1\x1f\x88"),
		coded("table size 4097", "7541 6.3", bad, "\x3f\xe2\x1f\x88"),
		coded("table size 2^31", "7541 6.3", bad, "\x3f\xe1\xff\xff\xff\x07\x88"),
		coded("table size behind a field", "7541 4.2", bad, "\x88\x40\x01x\x01y\x20"),
		coded("a bomb: one entry a thousand times", "7541 7.3", refuses("header list too large"), "\x88\x40\x01x\x7f\x81\x1e"+strings.Repeat("y", 3968)+strings.Repeat("\xbe", 1000)).maybeKept(),
		coded("a small bomb of small fields", "7541 7.3", refuses("header list too large"), "\x88"+strings.Repeat("\x90", 8000)).maybeKept(),
		coded("nothing", "9113 8.3.2", refuses("not one :status"), "").maybeKept(),
	}
}

func h2Fields() []lie {
	ok := reply(200, "ok")
	status, pseudo := malformed("invalid :status"), malformed("not one :status")
	name, value, hop := malformed("invalid field name"), malformed("invalid value"), malformed("connection-specific field")
	is := func(title, rfc string, want outcome, fields ...string) lie {
		return says2(title, rfc, want, head2(fields...), lastData("ok"))
	}
	with := func(title, rfc string, want outcome, fields ...string) lie {
		return is(title, rfc, want, append([]string{":status", "200"}, fields...)...)
	}
	return []lie{
		is("no status", "8.3.2", pseudo, "x", "y"),
		is("two statuses", "8.3.2", pseudo, ":status", "200", ":status", "200"),
		is("status of two digits", "8.3.2", status, ":status", "20"),
		is("status of four digits", "8.3.2", status, ":status", "2000"),
		is("status of letters", "8.3.2", status, ":status", "2xx"),
		is("status with a sign", "8.3.2", status, ":status", "+20"),
		is("status with a reason", "8.3.2", status, ":status", "200 OK"),
		is("status with a space", "8.3.2", status, ":status", " 200"),
		is("empty status", "8.3.2", status, ":status", ""),
		is("status 000", "8.3.2", status, ":status", "000"),
		is("status 099", "8.3.2", status, ":status", "099"),
		is("status 600", "8.3.2", status, ":status", "600"),
		is("status 299", "8.3.2", reply(299, "ok"), ":status", "299"),
		is("upper case :STATUS", "8.3", pseudo, ":STATUS", "200"),
		with("a pseudo-header of requests", "8.3.2", pseudo, ":path", "/"),
		with("an unknown pseudo-header", "8.3", pseudo, ":odd", "1"),
		with("a pseudo-header with no name", "8.3", pseudo, ":", "1"),
		is("status behind a field", "8.3", malformed("pseudo-header after a field"), "x", "y", ":status", "200"),
		with("an upper-case name", "8.2.1", name, "X", "y"),
		with("an empty name", "8.2.1", name, "", "y"),
		with("a space in a name", "8.2.1", name, "x y", "z"),
		with("a colon in a name", "8.2.1", name, "x:y", "z"),
		with("NUL in a name", "8.2.1", name, "x\x00", "z"),
		with("a line end in a name", "8.2.1", name, "x\r\ny", "z"),
		with("obs-text in a name", "8.2.1", name, "\xc3\xbc", "z"),
		with("DEL in a name", "8.2.1", name, "x\x7f", "z"),
		with("a parenthesis in a name", "8.2.1", name, "x(y)", "z"),
		with("NUL in a value", "8.2.1", value, "x", "a\x00b"),
		with("CR in a value", "8.2.1", value, "x", "a\rb"),
		with("LF in a value", "8.2.1", value, "x", "a\nb"),
		with("a header in a value", "8.2.1", value, "x", "a\r\nSet-Cookie: b"),
		with("a control in a value", "8.2.1", value, "x", "a\x01b"),
		with("DEL in a value", "8.2.1", value, "x", "a\x7fb"),
		with("a space before a value", "8.2.1", ok.with("x: a"), "x", " a"),
		with("a tab behind a value", "8.2.1", ok.with("x: a"), "x", "a\t"),
		with("a tab in a value", "8.2.1", ok.with("x: a\tb"), "x", "a\tb"),
		with("obs-text in a value", "8.2.1", ok.with("x: \xc3\xbc\xff"), "x", "\xc3\xbc\xff"),
		with("an empty value", "8.2.1", ok.with("x: "), "x", ""),
		with("two equal names keep their order", "8.2.1", ok.with("x: 1\nx: 2"), "x", "1", "x", "2"),
		with("connection", "8.2.2", hop, "connection", "close"),
		with("keep-alive", "8.2.2", hop, "keep-alive", "timeout=5"),
		with("proxy-connection", "8.2.2", hop, "proxy-connection", "close"),
		with("transfer-encoding", "8.2.2", hop, "transfer-encoding", "chunked"),
		with("upgrade", "8.2.2", hop, "upgrade", "websocket"),
		with("te: trailers is for requests", "8.2.2", ok.orElse(hop), "te", "trailers"),
		with("te: gzip", "8.2.2", hop, "te", "gzip"),
	}
}

func h2Interims() []lie {
	ok := reply(200, "ok")
	hints := head2(":status", "103", "link", "</a>")
	return []lie{
		says2("100", "8.1", ok.after(100), head2(":status", "100"), okay()),
		says2("103", "8.1", ok.after(103), hints, okay()),
		says2("eight", "8.1", ok.after(103, 103, 103, 103, 103, 103, 103, 103), strings.Repeat(hints, 8), okay()),
		says2("nine", "8.1", refuses("too many interim replies").maybe().after(103, 103, 103, 103, 103, 103, 103, 103), strings.Repeat(hints, 9), okay()),
		says2("with END_STREAM", "8.1", malformed("interim reply that ends"), final2(":status", "103")),
		says2("100 with END_STREAM", "8.1", malformed("interim reply that ends"), final2(":status", "100")),
		says2("101", "8.6", malformed("101"), head2(":status", "101"), okay()),
		says2("101 and END_STREAM", "8.6", malformed("101"), final2(":status", "101")),
		says2("behind the final reply", "8.1", corrupts("", "second head").onward().orElse(malformed("second head")),
			head2(":status", "200"), hints, lastData("ok")),
		says2("DATA behind it", "8.1", malformed("body before the head").after(103), hints, data2("hello"), okay()),
		says2("trailers behind it", "8.1", malformed("not one :status").after(103), hints, final2("x", "y")),
		says2("a malformed one", "8.2.1", malformed("invalid field name"), head2(":status", "103", "X", "y"), okay()),
		tell2("slow without an end", "8.1", fails(late, "").after(102, 102).onward(), say(head2(":status", "102")), pause(time.Second),
			say(head2(":status", "102")), pause(2*lieFirstByte), say(okay())),
		says2("before a HEAD's reply", "8.1", reply(200, "").after(103), hints, final2(":status", "200")).to("HEAD"),
	}
}

func h2Trailers() []lie {
	ok := reply(200, "ok")
	body := head2(":status", "200") + data2("ok")
	bad := func(reason string) outcome { return corrupts("ok", reason).onward().stopped("RST PROTOCOL_ERROR") }
	return []lie{
		says2("one", "8.1", ok.trailing("grpc-status: 0\n"), body, final2("grpc-status", "0")),
		says2("two in order", "8.1", ok.trailing("x: 1\nx: 2\n"), body, final2("x", "1", "x", "2")),
		says2("in two frames", "8.1", ok.trailing("x: 1\ny: 2\n"), body, frame(fHeaders, endStream, 1, block("x", "1")), frame(fContinuation, endHeaders, 1, block("y", "2"))),
		says2("of no fields", "8.1", ok, body, final2()),
		says2("behind no body", "8.1", reply(200, "").trailing("x: 1\n"), head2(":status", "200"), final2("x", "1")),
		says2("a head that is also the end", "8.1", reply(200, "").with("grpc-status: 7"), final2(":status", "200", "grpc-status", "7")),
		says2("without END_STREAM", "8.1", bad("second head"), body, head2("x", "1")),
		says2("a second head", "8.1", bad("second head"), body, head2(":status", "200"), lastData("ok")),
		says2("a second head that ends", "8.1", bad("pseudo-header in a trailer"), body, final2(":status", "200")),
		says2("a pseudo-header", "8.1", bad("pseudo-header"), body, final2("x", "1", ":status", "500")),
		says2("an upper-case name", "8.2.1", bad("invalid field name"), body, final2("X", "1")),
		says2("a connection field", "8.2.2", bad("connection-specific"), body, final2("connection", "close")),
		says2("a line end in a value", "8.2.1", bad("invalid value"), body, final2("x", "a\r\nb")),
		says2("a length is dropped", "9110 6.5.1", ok, body, final2("content-length", "3")),
		says2("75 KiB", "6.5.2", corrupts("ok", "header list too large"), body, frame(fHeaders, endStream, 1, ""),
			strings.Repeat(frame(fContinuation, 0, 1, block("x", strings.Repeat("x", 15<<10))), 5), frame(fContinuation, endHeaders, 1, "")).maybeKept(),
		says2("DATA behind them", "5.1", ok.trailing("x: 1\n").maybe(), body, final2("x", "1"), lastData("more")),
	}
}

func h2Streams() []lie {
	ok := reply(200, "ok")
	bad := breaks("PROTOCOL_ERROR")
	on := func(id uint32) string { return frame(fHeaders, endBoth, id, block(":status", "200")) }
	return []lie{
		says2("DATA before HEADERS", "8.1", malformed("body before the head"), lastData("ok")),
		says2("DATA before HEADERS, and then a reply", "8.1", malformed("body before the head"), data2("hello"), okay()),
		says2("DATA behind the end", "5.1", ok.maybe(), okay(), data2("more")),
		says2("DATA behind the end, next at once", "5.1", ok.maybe(), okay(), data2("more")).hurried(),
		says2("HEADERS behind the end", "5.1", ok.maybe(), okay(), final2(":status", "500")),
		says2("WINDOW_UPDATE behind the end", "5.1", ok, okay(), frame(fWindow, 0, 1, u32(1))),
		says2("a second reply behind the end", "5.1", ok.maybe(), okay(), head2(":status", "500"), lastData("poison")).hurried(),
		says2("HEADERS on stream 0", "6.2", bad, on(0), okay()),
		says2("HEADERS on an even stream", "5.1.1", bad, on(2), okay()),
		says2("HEADERS on an idle stream", "5.1", bad, on(99), okay()),
		says2("a reply to the next request, before it", "5.1", bad, frame(fHeaders, endHeaders, 3, block(":status", "200"))+
			frame(fData, endStream, 3, "poison"), okay()),
		says2("DATA on stream 0", "6.1", bad, frame(fData, 0, 0, "hello"), okay()),
		says2("DATA on an even stream", "6.1", bad, frame(fData, 0, 2, "hello"), okay()),
		says2("DATA on an idle stream", "5.1", bad, frame(fData, 0, 99, "hello"), okay()),
		says2("WINDOW_UPDATE on an idle stream", "5.1", bad, frame(fWindow, 0, 99, u32(1)), okay()),
		says2("DATA with padding", "6.1", ok, head2(":status", "200"), frame(fData, endStream|padded, 1, "\x03ok\x00\x00\x00")),
		says2("DATA of padding and an end", "6.1", ok, head2(":status", "200"), data2("ok"), frame(fData, endStream|padded, 1, "\x03\x00\x00\x00")),
		says2("DATA with padding longer than itself", "6.1", corrupts("", ""), head2(":status", "200"), frame(fData, endStream|padded, 1, "\x03ok")).
			expect(corrupts("", "").orElse(refuses(""))),
		says2("DATA with padding and no length of it", "6.1", corrupts("", ""), head2(":status", "200"), frame(fData, endStream|padded, 1, "")).
			expect(corrupts("", "").orElse(refuses(""))),
		says2("an end in a frame of its own", "6.1", ok, head2(":status", "200"), data2("o"), data2("k"), lastData("")),
		tell2("a body in single bytes", "6.1", ok, say(head2(":status", "200")), drip(data2("o")+data2("k")+lastData(""), time.Millisecond)),
		tell2("no reply", "9110 15.6.5", fails(late, "no reply").onward(), pause(2*lieFirstByte), say(okay())),
	}
}

func h2Lengths() []lie {
	with := func(name string, want outcome, length string) lie {
		return says2(name, "8.1.1", want, head2(":status", "200", "content-length", length), data2("hel"), lastData("lo"))
	}
	invalid := malformed("invalid content-length")
	long, short := corrupts("hello", "longer than declared").onward(), corrupts("hello", "shorter than declared").onward()
	none := malformed("body of a reply that has none")
	return []lie{
		with("right", reply(200, "hello").declared(5), "5"),
		with("less than declared", short, "6"),
		with("more than declared", long, "4"),
		with("more than nothing", long.orElse(malformed("longer than declared")), "0"),
		with("negative", invalid, "-5"),
		with("plus", invalid, "+5"),
		with("hex", invalid, "0x5"),
		with("letters", invalid, "five"),
		with("empty", invalid, ""),
		with("list of different", invalid, "5, 6"),
		with("list of equal", invalid, "5, 5"),
		with("beyond 63 bits", invalid, "9223372036854775808"),
		says2("two different", "8.1.1", invalid, head2(":status", "200", "content-length", "5", "content-length", "6"), lastData("hello")),
		says2("two equal", "9110 8.6", reply(200, "hello"), head2(":status", "200", "content-length", "5", "content-length", "5"), lastData("hello")),
		says2("declared, and an end at once", "8.1.1", malformed("shorter than declared"), final2(":status", "200", "content-length", "5")),
		says2("declared, and an empty end", "8.1.1", short.orElse(malformed("shorter than declared")), head2(":status", "200", "content-length", "5"), lastData("")),
		says2("less, and trailers", "8.1.1", short, head2(":status", "200", "content-length", "5"), data2("hell"), final2("x", "y")),
		says2("HEAD declares what GET would send", "8.1.1", reply(200, "").declared(5), final2(":status", "200", "content-length", "5")).to("HEAD"),
		says2("HEAD with a body", "9110 9.3.2", corrupts("", "none").onward().orElse(none), head2(":status", "200"), lastData("hello")).to("HEAD"),
		says2("204 with a body", "9110 15.3.5", outcome{fate: corrupt, status: 204, reuse: kept, seen: 1}.orElse(none),
			head2(":status", "204"), lastData("hello")),
		says2("204 with an empty end", "9110 15.3.5", reply(204, ""), head2(":status", "204"), lastData("")),
		says2("304 with a length", "8.1.1", reply(304, "").declared(5), final2(":status", "304", "content-length", "5")),
		says2("304 with a body", "9110 15.4.5", outcome{fate: corrupt, status: 304, reuse: kept, seen: 1}.orElse(none),
			head2(":status", "304", "content-length", "5"), lastData("hello")),
	}
}

func h2FlowControl() []lie {
	ok := reply(200, "ok")
	bad := breaks("PROTOCOL_ERROR")
	up := func(stream, n uint32) string { return frame(fWindow, 0, stream, u32(n)) }
	piece := data2(strings.Repeat("x", 16<<10))
	return []lie{
		says2("more window", "6.9", ok, up(0, 1000), up(1, 1000), okay()),
		says2("no more window on the connection", "6.9", bad, up(0, 0), okay()),
		says2("no more window on the stream", "6.9", spoils("PROTOCOL_ERROR"), up(1, 0), okay()).stalling(),
		says2("window of the connection beyond 2^31-1", "6.9.1", breaks("FLOW_CONTROL_ERROR"), up(0, 1<<31-1), okay()),
		says2("window of the stream beyond 2^31-1", "6.9.1", spoils("FLOW_CONTROL_ERROR"), up(1, 1<<31-1), okay()).stalling(),
		says2("window by SETTINGS beyond 2^31-1", "6.9.2", breaks("FLOW_CONTROL_ERROR"), up(1, 1<<31-1-65535), setting(sWindow, 1<<31-1), okay()).stalling(),
		says2("reserved bit of an increment", "6.9", ok, up(0, 1<<31|1), okay()),
		tell2("a body beyond the window of the stream", "6.9.1", corrupts(strings.Repeat("x", lieBody), "more than the window"),
			say(head2(":status", "200")), say(strings.Repeat(piece, 64)), say(lastData(""))).unread().maybeKept(),
		tell2("a body beyond the window of the connection", "6.9.1", corrupts(strings.Repeat("x", lieBody), "more than the window"),
			say(head2(":status", "200")), endless(piece)).unread().maybeKept(),
		tell2("a body without an end, read", "6.9.1", fails(hung, "no end").maybe(), say(head2(":status", "200")), flowing(piece, lieBody)).
			expect(outcome{fate: hung, status: 200, body: strings.Repeat("x", lieBody), seen: 1}),
	}
}

// flowing writes pieces slowly, until n bytes are said.
func flowing(piece string, n int) step {
	return func(t *turn) error {
		for ; n > 0; n -= len(piece) {
			time.Sleep(time.Millisecond)
			if err := t.write(piece); err != nil {
				return err
			}
		}
		return nil
	}
}
