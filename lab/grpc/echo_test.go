package grpclab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoService is what the official server lacks: replies that are made of the
// request, and a report of how a call ended.
var echoService = grpc.ServiceDesc{
	ServiceName: "edge.lab.Echo",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "Echo", Handler: handler((*echoServer).Echo), ServerStreams: true, ClientStreams: true},
		{StreamName: "Hang", Handler: handler((*echoServer).Hang), ServerStreams: true, ClientStreams: true},
	},
}

func handler(method func(*echoServer, grpc.ServerStream) error) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error { return method(srv.(*echoServer), stream) }
}

// ending is how a call of Hang ended.
type ending struct {
	at       time.Time
	deadline bool // the call had one
}

// echoServer serves echoService.
type echoServer struct{ ended chan ending }

// Echo sends back each message as it came.
func (s *echoServer) Echo(stream grpc.ServerStream) error {
	for {
		var m wrapperspb.BytesValue
		if err := stream.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.SendMsg(&m); err != nil {
			return err
		}
	}
}

// Hang answers one message and then nothing until the call is over.
func (s *echoServer) Hang(stream grpc.ServerStream) error {
	if err := stream.SendMsg(wrapperspb.Bytes([]byte("here"))); err != nil {
		return err
	}
	<-stream.Context().Done()
	_, deadline := stream.Context().Deadline()
	s.ended <- ending{time.Now(), deadline}
	return stream.Context().Err()
}

// open starts a call of one of echoService's methods.
func open(ctx context.Context, conn *grpc.ClientConn, method string, options ...grpc.CallOption) (grpc.ClientStream, error) {
	desc := grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}
	return conn.NewStream(ctx, &desc, "/"+echoService.ServiceName+"/"+method, options...)
}

func TestManyStreamsAtOnceStayByteForByte(t *testing.T) {
	const streams, messages = 64, 200
	bothWays(t, func(t *testing.T, _ *backend, conn *grpc.ClientConn) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		failures := make(chan error, streams)
		for i := range streams {
			go func() { failures <- converse(ctx, conn, uint64(i), messages) }()
		}
		failed, first := 0, error(nil)
		for range streams {
			if err := <-failures; err != nil {
				failed++
				first = cmp.Or(first, err)
			}
		}
		if failed > 0 {
			t.Errorf("%d of %d streams failed, the first: %v", failed, streams, first)
		}
	})
}

// converse sends and receives at the same time. What is sent follows from seed,
// so that a byte of another stream is a wrong byte.
func converse(ctx context.Context, conn *grpc.ClientConn, seed uint64, messages int, options ...grpc.CallOption) error {
	stream, err := open(ctx, conn, "Echo", options...)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		source := newSource(seed)
		for range messages {
			if err := stream.SendMsg(wrapperspb.Bytes(source.message())); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	source := newSource(seed)
	for i := range messages {
		var m wrapperspb.BytesValue
		if err := stream.RecvMsg(&m); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
		if want := source.message(); !bytes.Equal(m.GetValue(), want) {
			return fmt.Errorf("message %d is not what was sent (%d bytes, want %d)", i, len(m.GetValue()), len(want))
		}
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("send: %w", err)
	}
	switch err := stream.RecvMsg(new(wrapperspb.BytesValue)); {
	case err == nil:
		return errors.New("got a message after the last")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("after the last message: %w", err)
	}
	return nil
}

// source makes the messages of a seed: mostly small, now and then larger than a
// frame.
type source struct {
	bytes *rand.ChaCha8
	sizes *rand.Rand
}

func newSource(seed uint64) source {
	return source{rand.NewChaCha8([32]byte{byte(seed)}), rand.New(rand.NewPCG(seed, 1))}
}

func (s source) message() []byte {
	size := s.sizes.IntN(1000)
	if s.sizes.IntN(50) == 0 {
		size += 20_000
	}
	m := make([]byte, size)
	_, _ = s.bytes.Read(m) // never fails
	return m
}

func TestTheServerLearnsThatACallIsOver(t *testing.T) {
	for name, test := range map[string]struct {
		limit time.Duration
		want  codes.Code
	}{
		"by a deadline":    {time.Second, codes.DeadlineExceeded},
		"by the departure": {0, codes.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, b *backend, conn *grpc.ClientConn) {
				t.Helper()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.limit > 0 {
					ctx, cancel = context.WithTimeout(ctx, test.limit)
					defer cancel()
				}
				stream, err := open(ctx, conn, "Hang")
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
					t.Fatal(err)
				}
				over, known := ctx.Deadline()
				if !known {
					over = time.Now()
					cancel()
				}
				if err := stream.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != test.want {
					t.Errorf("got %v, want %v", err, test.want)
				}
				select {
				case e := <-b.echo.ended:
					if d := e.at.Sub(over); d > reactTime {
						t.Errorf("the server learned it after %v, want within %v", d, reactTime)
					}
					if e.deadline != known {
						t.Errorf("the server had a deadline: %v, the client: %v", e.deadline, known)
					}
				case <-time.After(patience):
					t.Error("the server never learned it")
				}
			})
		})
	}
}

func TestTheNextCallAfterARestartWorks(t *testing.T) {
	for name, how := range map[string]func(*grpc.Server){
		"at once": (*grpc.Server).Stop, "gracefully": (*grpc.Server).GracefulStop,
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, b *backend, conn *grpc.ClientConn) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				ready := grpc.WaitForReady(true) // a client without edge connects anew; one of edge has no need to
				for round := range 3 {
					if err := converse(ctx, conn, uint64(round), 3, ready); err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
					b.stop(t, how)
					if err := converse(ctx, conn, 0, 1); status.Code(err) != codes.Unavailable {
						t.Errorf("without a server: got %v, want %v", err, codes.Unavailable)
					}
					b.start(t)
					conn.ResetConnectBackoff()
				}
			})
		})
	}
}
