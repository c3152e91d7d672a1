package http1

import (
	"bytes"
	"io"
	"math"
	"strconv"
	"strings"

	"edge/proxy/exchange"

	"golang.org/x/net/http/httpguts"
)

// Bounds of the chunked coding besides the data.
const (
	maxChunkLine   = 2 << 10  // bytes of a size with its extensions
	maxSizeDigits  = 16       // hexadecimal, leading zeros included
	maxTrailer     = 8 << 10  // bytes of the trailer section
	maxChunkExcess = 16 << 10 // bytes beyond excessPerChunk and twice the data (CVE-2023-39326)
	excessPerChunk = 16
)

const (
	errChunkSize    malformed = "invalid chunk size"
	errChunkLine    malformed = "chunk line too long"
	errChunkExt     malformed = "invalid byte in chunk extension"
	errChunkEnd     malformed = "chunk without its line end"
	errChunkExcess  malformed = "more framing than data in chunks"
	errTrailerSize  malformed = "trailer too large"
	errTrailerEnd   malformed = "invalid end of trailer"
	errTrailerFirst malformed = "invalid trailer"
)

// Where a chunkReader is (RFC 9112 7.1).
const (
	inSize       = iota
	inPad        // blanks behind the size, which old servers write
	inExtension  // skipped
	inSizeLF     // behind the CR of the size line
	inData       //
	inDataCR     // behind the data
	inDataLF     //
	inTrailer    // at the first byte behind the last chunk's line
	inTrailerLF  // behind its CR: the section is empty
	inTrailerSec // the section is not empty
	atEnd
)

// chunkReader takes the chunked coding off, piece by piece, and keeps nothing
// but its place: it works in the buffer of whoever reads, and a stream needs no
// other. The zero value is at the start of a body.
type chunkReader struct {
	state  uint8
	digits uint8
	left   int64 // of the data of this chunk
	line   int   // bytes of the line so far
	excess int64

	raw     []byte // the trailer section as far as it came
	scan    headScan
	trailer exchange.Fields // valid at the end
}

// decode moves the data in src to dst and returns how much it gave and took.
// dst may begin where src does, or before: it never gives more than it took. It
// stops when src is used up, when dst is full and with io.EOF at the end of the
// body; what follows is left in src.
func (d *chunkReader) decode(dst, src []byte) (n, used int, err error) {
	for used < len(src) && d.state != atEnd {
		switch d.state {
		case inData:
			if n == len(dst) {
				return n, used, nil
			}
			k := copy(dst[n:], src[used:][:min(int64(len(src)-used), d.left)])
			n += k
			used += k
			if d.left -= int64(k); d.left == 0 {
				d.state = inDataCR
			}
		case inTrailerSec:
			k, err := d.readTrailer(src[used:])
			used += k
			if err != nil {
				return n, used, err
			}
		default:
			if err := d.step(src[used]); err != nil {
				return n, used, err
			}
			used++
		}
	}
	if d.state == atEnd {
		err = io.EOF
	}
	return n, used, err
}

// step takes one byte that is no data.
func (d *chunkReader) step(c byte) error {
	switch d.state {
	case inSize, inPad, inExtension, inSizeLF:
		if d.line++; d.line > maxChunkLine {
			return errChunkLine
		}
		return d.stepLine(c)
	case inDataCR:
		if c != '\r' {
			return errChunkEnd
		}
		d.state = inDataLF
	case inDataLF:
		if c != '\n' {
			return errChunkEnd
		}
		d.state, d.digits, d.line = inSize, 0, 0
	case inTrailer:
		if c == '\r' {
			d.state = inTrailerLF
			return nil
		}
		d.raw = append(d.raw, c)
		d.state = inTrailerSec
		if c == '\n' {
			return errTrailerFirst
		}
	case inTrailerLF:
		if c != '\n' {
			return errTrailerEnd
		}
		d.state = atEnd
	}
	return nil
}

// stepLine takes one byte of the line with the size.
func (d *chunkReader) stepLine(c byte) error {
	switch {
	case d.state == inSizeLF:
		if c != '\n' {
			return errChunkSize
		}
		return d.begin()
	case c == '\r':
		if d.digits == 0 {
			return errChunkSize
		}
		d.state = inSizeLF
	case d.state == inExtension:
		if class[c]&valueByte == 0 {
			return errChunkExt
		}
	case d.state == inSize && c == ';' && d.digits > 0:
		d.state = inExtension
	case isBlank(c) && d.digits > 0:
		d.state = inPad
	case d.state == inPad:
		return errChunkSize
	default:
		return d.addDigit(c)
	}
	return nil
}

func (d *chunkReader) addDigit(c byte) error {
	digit := strings.IndexByte("0123456789abcdefABCDEF", c)
	if digit > 0xf {
		digit -= len("ABCDEF")
	}
	if digit < 0 || d.digits == maxSizeDigits || d.left > math.MaxInt64>>4 {
		return errChunkSize
	}
	d.digits++
	d.left = d.left<<4 | int64(digit)
	return nil
}

// begin is called behind the line with the size. One byte a chunk is fair, as
// streams do that; padding the stream with extensions is not.
func (d *chunkReader) begin() error {
	d.excess += int64(d.line) - excessPerChunk
	d.excess = max(d.excess-2*min(d.left, maxChunkExcess), 0) // excess is hardly more
	if d.excess > maxChunkExcess {
		return errChunkExcess
	}
	d.state = inData
	if d.left == 0 {
		d.state = inTrailer
	}
	return nil
}

// readTrailer takes the next line, or part of one, of the trailer section.
func (d *chunkReader) readTrailer(src []byte) (int, error) {
	k := len(src)
	if i := bytes.IndexByte(src, '\n'); i >= 0 {
		k = i + 1
	}
	if len(d.raw)+k > maxTrailer {
		return 0, errTrailerSize
	}
	d.raw = append(d.raw, src[:k]...)
	n, err := d.scan.find(d.raw)
	if n == 0 || err != nil {
		return k, err
	}
	all, err := parseFields(make(exchange.Fields, 0, d.scan.lines), string(d.raw))
	if err != nil {
		return k, err
	}
	d.trailer, d.raw, d.state = allowedTrailer(all), nil, atEnd
	return k, nil
}

// allowedTrailer takes out, in place, the fields that may not be in a trailer:
// those of framing, routing and authentication (RFC 9110 6.5.1).
func allowedTrailer(f exchange.Fields) exchange.Fields {
	kept := f[:0]
	for _, x := range f {
		if httpguts.ValidTrailerHeader(x.Name) {
			kept = append(kept, x)
		}
	}
	return kept
}

// Room around the data of a chunk that is to be sent: its size in front, and
// behind it the line end and, at the end of the body, the last chunk.
const (
	chunkFront = 8 + len("\r\n")
	chunkBack  = len("\r\n") + len("0\r\n")
)

// frameChunk puts the coding around the n bytes of data at b[chunkFront], n > 0,
// and returns where the chunk begins and ends in b.
func frameChunk(b []byte, n int) (from, to int) {
	var digits [16]byte
	size := strconv.AppendUint(digits[:0], uint64(n), 16) //nolint:gosec // a length
	from = chunkFront - len("\r\n") - len(size)
	copy(b[from:], size)
	copy(b[chunkFront-2:], "\r\n")
	to = chunkFront + n
	return from, to + copy(b[to:], "\r\n")
}

// appendLastChunk ends a body: the last chunk, the trailers and the empty line.
// Trailer fields that may not be there are left out; one that would break the
// framing is ErrUnsendable.
func appendLastChunk(b []byte, trailer exchange.Fields) ([]byte, error) {
	b = append(b, "0\r\n"...)
	for i := range trailer {
		if !isToken(trailer[i].Name) || !isFieldValue(trailer[i].Value) {
			return b, unsendable("trailer field")
		}
		if httpguts.ValidTrailerHeader(trailer[i].Name) {
			b = appendField(b, trailer[i].Name, trailer[i].Value)
		}
	}
	return append(b, "\r\n"...), nil
}
