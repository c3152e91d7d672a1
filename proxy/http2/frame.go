package http2

import (
	"encoding/binary"

	h2 "golang.org/x/net/http2"
)

// Frames are written straight into the buffer of the connection. The Framer
// would copy each of them once more.

// frameHeader is the size of the header of a frame.
const frameHeader = 9

// appendFrame appends the header of a frame (RFC 9113 4.1).
func appendFrame(b []byte, length int, t h2.FrameType, flags h2.Flags, id uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(t), byte(flags), //nolint:gosec // three bytes of it, as it must be
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id)) //nolint:gosec // as above
}

// appendData appends a DATA frame, which the caller has seen to fit.
func appendData(b []byte, id uint32, data []byte, end bool) []byte {
	var flags h2.Flags
	if end {
		flags = h2.FlagDataEndStream
	}
	return append(appendFrame(b, len(data), h2.FrameData, flags, id), data...)
}

// appendBlock appends a field block as HEADERS and as many CONTINUATION frames as
// it needs.
func appendBlock(b []byte, id uint32, block []byte, end bool, most int) []byte {
	var flags h2.Flags
	if end {
		flags = h2.FlagHeadersEndStream
	}
	for t := h2.FrameHeaders; ; t = h2.FrameContinuation {
		piece := block[:min(len(block), most)]
		block = block[len(piece):]
		if len(block) == 0 {
			flags |= h2.FlagHeadersEndHeaders
		}
		b = append(appendFrame(b, len(piece), t, flags, id), piece...)
		if len(block) == 0 {
			return b
		}
		flags = 0
	}
}

func appendReset(b []byte, id uint32, code h2.ErrCode) []byte {
	b = appendFrame(b, 4, h2.FrameRSTStream, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	b = appendFrame(b, 4, h2.FrameWindowUpdate, 0, id)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendPing(b []byte, ack bool, data [8]byte) []byte {
	var flags h2.Flags
	if ack {
		flags = h2.FlagPingAck
	}
	return append(appendFrame(b, 8, h2.FramePing, flags, 0), data[:]...)
}

func appendSettings(b []byte, settings ...h2.Setting) []byte {
	b = appendFrame(b, 6*len(settings), h2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendSettingsAck(b []byte) []byte {
	return appendFrame(b, 0, h2.FrameSettings, h2.FlagSettingsAck, 0)
}

// appendGoAway appends a GOAWAY: the peer has opened no stream that we know.
func appendGoAway(b []byte, code h2.ErrCode) []byte {
	b = appendFrame(b, 8, h2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}
