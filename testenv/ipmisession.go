package testenv

import (
	"context"
	"encoding/binary"
	"net"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// getSessionInfo implements Get Session Info (22.20) for the caller's own session and
// for one that is named by its ID, which tells who holds the console.
func (b *IPMIBMC) getSessionInfo(_ context.Context, h *handlers.HandlerContext, data []byte) ([]byte, types.CompletionCode, error) {
	const own, byID = 0x00, 0xff
	if len(data) < 1 {
		return nil, types.CodeRequestDataLengthInvalid, nil
	}
	sessions := b.bmc.Sessions
	s := h.Session
	switch {
	case data[0] == own && s != nil:
	case data[0] == byID && len(data) >= 5:
		var err error
		if s, err = sessions.Get(binary.LittleEndian.Uint32(data[1:5])); err != nil {
			return nil, types.CodeRequestDataFieldInvalid, nil
		}
	default:
		return nil, types.CodeRequestDataFieldInvalid, nil
	}
	user := byte(0)
	if s.User != nil {
		user = s.User.ID
	}
	const rmcpPlus = 1 << 4
	answer := []byte{s.Handle, byte(min(sessions.Cap(), 63)), byte(min(sessions.Count(), 63)), user, byte(s.PrivilegeLevel), rmcpPlus | s.Channel&0x0f}
	if at, ok := s.GetAddr().(*net.UDPAddr); ok && at.IP.To4() != nil {
		answer = append(append(answer, at.IP.To4()...), 0, 0, 0, 0, 0, 0)
		answer = binary.LittleEndian.AppendUint16(answer, uint16(at.Port))
	}
	return answer, types.CodeOK, nil
}
