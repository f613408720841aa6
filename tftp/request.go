package tftp

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Opcodes of RFC 1350 section 5 and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opError = 5
	opOACK  = 6
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

// plainBlock is the block size where none is agreed on (RFC 1350 section 2).
const plainBlock = 512

// grantedBlock is the block size that the first packet of an answer stands for.
func grantedBlock(p []byte) int {
	if len(p) < 2 || p[1] != opOACK {
		return plainBlock
	}
	fields := strings.Split(string(p[2:]), "\x00")
	for i := 0; i+1 < len(fields); i += 2 {
		if strings.EqualFold(fields[i], "blksize") {
			if n, err := strconv.Atoi(fields[i+1]); err == nil {
				return n
			}
		}
	}
	return plainBlock
}

// packet is the request as the library shall see it: option names in lower case,
// as it compares them, and only those that it knows.
func (r request) packet() []byte {
	mode := "octet"
	if r.text {
		mode = "netascii"
	}
	p := fmt.Appendf([]byte{0, opRead}, "%s\x00%s\x00", r.name, mode)
	seen := map[string]bool{}
	for _, o := range r.options {
		if seen[o.name] || o.value == "" {
			continue
		}
		seen[o.name] = true
		switch {
		case o.name == "blksize":
		case o.name == "tsize" && !r.text: // unknown before the text is converted
		default:
			continue
		}
		p = fmt.Appendf(p, "%s\x00%s\x00", o.name, o.value)
	}
	return p
}
