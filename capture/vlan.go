package capture

import (
	"encoding/binary"
	"errors"
	"slices"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// The kernel takes a VLAN's tag out of a frame that comes in and tells of it beside
// the frame. The file has it where it was on the wire: a machine that speaks in
// another VLAN than it should must not look as if it did not.
const (
	etherVLAN = 0x8100 // 802.1Q
	tagLen    = 4
)

// askForTags makes a packet socket tell of the tags.
func askForTags(c *packet.Conn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = rc.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	})
	return errors.Join(err, failed)
}

// receive reads a frame and the tag that the kernel took out of it, which is nil
// where there was none.
func receive(rc syscall.RawConn, buf []byte) (n int, tag []byte, err error) {
	var oob [64]byte
	var m int
	rerr := rc.Read(func(fd uintptr) bool {
		for n, m, err = 0, 0, unix.EINTR; err == unix.EINTR; {
			n, m, _, _, err = unix.Recvmsg(int(fd), buf, oob[:], 0)
		}
		return err != unix.EAGAIN
	})
	if rerr != nil {
		return 0, nil, rerr
	}
	if err != nil {
		return 0, nil, err
	}
	return n, tagBeside(oob[:m]), nil
}

// tagBeside reads the tag out of struct tpacket_auxdata.
func tagBeside(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		status := binary.NativeEndian.Uint32(m.Data)
		if status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		protocol := uint16(etherVLAN)
		if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			protocol = binary.NativeEndian.Uint16(m.Data[18:])
		}
		tag := binary.BigEndian.AppendUint16(nil, protocol)
		return binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:]))
	}
	return nil
}

// untag takes out a tag that stands in the frame. The frame is changed.
func untag(frame []byte) (rest, tag []byte) {
	if len(frame) < 14+tagLen || binary.BigEndian.Uint16(frame[12:]) != etherVLAN {
		return frame, nil
	}
	tag = slices.Clone(frame[12 : 12+tagLen])
	copy(frame[tagLen:], frame[:12])
	return frame[tagLen:], tag
}

// retag puts them back, the outer one first.
func retag(frame, beside, in []byte) []byte {
	if beside == nil && in == nil {
		return frame
	}
	return slices.Concat(frame[:12], beside, in, frame[12:])
}
