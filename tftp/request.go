package tftp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Opcodes of RFC 1350 section 5 and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// Error codes of RFC 1350 section 5.
const (
	codeText     = 0 // see the text
	codeNotFound = 1
	codeWrongTID = 5
)

// maxRequest is what RFC 2347 allows for a request with all its options, and
// maxName what any of our clients' firmware can hold.
const (
	maxRequest = 512
	maxName    = 255
)

// request is a read request that was understood.
type request struct {
	name    string
	text    bool // netascii
	options []option
}

type option struct{ name, value string }

// refusal says why a packet goes no further. The text is a constant, so that it
// can key a counter.
type refusal string

func (r refusal) Error() string { return "refuse request: " + string(r) }

const (
	badShort   refusal = "shorter than a request"
	badWrite   refusal = "write request"
	badOpcode  refusal = "not a request"
	badLong    refusal = "longer than 512 bytes"
	badEnd     refusal = "not closed by a zero byte"
	badName    refusal = "file name empty or longer than 255 bytes"
	badMode    refusal = "mode is neither octet nor netascii"
	badOptions refusal = "options do not come in pairs"
)

// parseRequest reads a packet that arrived on the listening port.
func parseRequest(p []byte) (request, error) {
	var r request
	if len(p) < 4 {
		return r, badShort
	}
	switch binary.BigEndian.Uint16(p) {
	case opRead:
	case opWrite:
		return r, badWrite
	default:
		return r, badOpcode
	}
	if len(p) > maxRequest {
		return r, badLong
	}
	if p[len(p)-1] != 0 {
		return r, badEnd
	}
	fields := strings.Split(string(p[2:len(p)-1]), "\x00")
	r.name = cleanName(fields[0])
	if r.name == "" || len(r.name) > maxName {
		return r, badName
	}
	if len(fields) < 2 {
		return r, badMode
	}
	switch strings.ToLower(fields[1]) {
	case "octet":
	case "netascii":
		r.text = true
	default:
		return r, badMode
	}
	for rest := fields[2:]; len(rest) > 0; rest = rest[2:] {
		if rest[0] == "" {
			break // some ROMs send the whole buffer, zeros after the last option
		}
		if len(rest) == 1 {
			return r, badOptions
		}
		r.options = append(r.options, option{strings.ToLower(rest[0]), rest[1]})
	}
	return r, nil
}

// cleanName takes off what clients put around a name: a leading slash, and the
// end mark 0xff of DHCP's options, which old UEFI reads as part of option 67.
func cleanName(s string) string {
	return strings.TrimLeft(strings.TrimSuffix(s, "\xff"), "/")
}

const (
	plainBlock = 512   // where none is agreed on (RFC 1350 section 2)
	minBlock   = 8     // RFC 2348
	maxBlock   = 65464 // likewise
	// edk2 asks for a window of 4; beyond 16 no firmware gets faster, and a burst
	// that overruns its receive ring makes it slower.
	maxWindow = 16
)

// terms are what a transfer runs by.
type terms struct {
	block   int           // bytes in each block but the last
	window  int           // blocks sent ahead of their acknowledgement (RFC 7440)
	timeout time.Duration // the client's (RFC 2349); 0 leaves it to us
	oack    []byte        // says so to the client; nil where no option was granted
}

// agree grants what it can of the options that were asked for, each once, to a
// file of size bytes; room is how large a block may be on the way to the client.
func (r request) agree(size int64, room int) terms {
	t := terms{block: plainBlock, window: 1}
	var granted []string
	for _, o := range r.options {
		if slices.Contains(granted, o.name) {
			continue
		}
		n, err := strconv.Atoi(o.value)
		if err != nil {
			continue
		}
		value := n
		switch {
		case o.name == "blksize" && minBlock <= n && n <= maxBlock:
			t.block = min(n, room)
			value = t.block
		case o.name == "tsize":
			value = int(size)
		case o.name == "windowsize" && 1 <= n && n <= 65535:
			t.window = min(n, maxWindow)
			value = t.window
		case o.name == "timeout" && 1 <= n && n <= 255:
			t.timeout = time.Duration(n) * time.Second
		default:
			continue
		}
		if granted == nil {
			t.oack = []byte{0, opOACK}
		}
		granted = append(granted, o.name)
		t.oack = fmt.Appendf(t.oack, "%s\x00%d\x00", o.name, value)
	}
	return t
}

// parseAnswer reads what a client sends in a transfer: the block that it
// acknowledges, or that it gives up, as a clientError.
func parseAnswer(p []byte) (block uint16, err error) {
	if len(p) < 4 {
		return 0, badAnswer
	}
	switch binary.BigEndian.Uint16(p) {
	case opAck:
		return binary.BigEndian.Uint16(p[2:]), nil
	case opError:
		text, _, _ := strings.Cut(string(p[4:]), "\x00")
		return 0, clientError(fmt.Sprintf("error %d from the client: %.80q", binary.BigEndian.Uint16(p[2:]), text))
	}
	return 0, badAnswer
}

const badAnswer refusal = "neither acknowledgement nor error"

// clientError is a client's ERROR, which has no answer (RFC 1350 section 7).
type clientError string

func (e clientError) Error() string { return string(e) }

// dataPacket appends the head of a block.
func dataPacket(p []byte, block uint16) []byte {
	return binary.BigEndian.AppendUint16(append(p, 0, opData), block)
}

func ackPacket(block uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{0, opAck}, block)
}

func errorPacket(code uint16, text string) []byte {
	p := binary.BigEndian.AppendUint16([]byte{0, opError}, code)
	return append(append(p, text...), 0)
}
