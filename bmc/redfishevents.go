package bmc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"
)

const (
	// streamBuffer holds a line of a stream, of which only the first bytes are looked
	// at; thousands of streams stay open.
	streamBuffer = 512
	// refusalMost is how much of the answer to a stream that is refused is read.
	refusalMost = 16 << 10
)

// redfishStream is one connection with server-sent events (DSP0266, 13.10). Pushed
// events would need a listener that every BMC can reach, and would leave
// subscriptions behind; this one ends with its connection.
type redfishStream struct {
	conn  net.Conn
	lines *bufio.Reader
}

// listen opens the stream that the service names, in the session there is. It is a
// connection beside the one for requests: some BMCs answer none while it is open, and
// whoever looks has to close it then.
func (d *redfishDriver) listen(ctx context.Context) (*redfishStream, error) {
	var service struct {
		Enabled *bool  `json:"ServiceEnabled"`
		Stream  string `json:"ServerSentEventUri"`
	}
	if d.eventService == "" {
		return nil, fmt.Errorf("%w: it has no event service", ErrUnsupported)
	}
	if err := d.again(ctx, func() error {
		_, err := d.get(ctx, d.eventService, &service)
		return err
	}); err != nil {
		return nil, err
	}
	uri := d.local(service.Stream)
	if uri == "" || service.Enabled != nil && !*service.Enabled {
		return nil, fmt.Errorf("%w: its event service offers no stream", ErrUnsupported)
	}
	// Without a deadline of its own a stream is silent for days: the kernel finds out
	// whether the BMC is still there.
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: 10 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 30 * time.Second, Count: 4}},
		Config:    d.transport.tls,
	}
	conn, err := dialer.DialContext(ctx, "tcp", d.address.hostPort())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	lines, err := d.ask(ctx, conn, uri)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &redfishStream{conn: conn, lines: lines}, nil
}

// ask sends the request for the stream and reads the answer up to the first event.
func (d *redfishDriver) ask(ctx context.Context, conn net.Conn, uri string) (*bufio.Reader, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+d.address.hostPort()+uri, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %q", badLink, uri)
	}
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("OData-Version", "4.0")
	d.authorise(request)
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	answer := bufio.NewReaderSize(conn, streamBuffer)
	response, err := http.ReadResponse(answer, request)
	if err != nil {
		return nil, err
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode != http.StatusOK:
		said, _ := io.ReadAll(io.LimitReader(response.Body, refusalMost))
		id, text := extendedInfo(said)
		return nil, &AnswerError{Reason: httpReason(response.StatusCode, id, text), Code: oneLine(errors.New(id)), Message: oneLine(errors.New(text)),
			Status: response.StatusCode, After: retryAfter(response.Header.Get("Retry-After"), time.Now()), what: "GET " + uri}
	case kind != "text/event-stream":
		return nil, fmt.Errorf("%w: its stream of events is %q", ErrUnsupported, kind)
	}
	if response.ContentLength < 0 && len(response.TransferEncoding) == 0 {
		return answer, nil // to the end of the connection
	}
	return bufio.NewReaderSize(response.Body, streamBuffer), nil
}

func (s *redfishStream) Next(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	err := nextEvent(s.lines)
	if !stop() && err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return explain("read events", err)
	}
	return nil
}

func (s *redfishStream) Close() error { return s.conn.Close() }

// nextEvent reads to the end of the next event that has data (HTML, 9.2.6); comments
// and fields without data are signs of life alone. Lines may be of any length.
func nextEvent(r *bufio.Reader) error {
	data := false
	for begins := true; ; {
		line, err := r.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		if err != nil && !cut {
			return err
		}
		if begins {
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 && data {
				return nil
			}
			data = data || bytes.HasPrefix(line, []byte("data:"))
		}
		begins = !cut
	}
}
