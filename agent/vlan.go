package agent

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vlanArgs is struct vlan_ioctl_args of linux/if_vlan.h.
type vlanArgs struct {
	cmd    int32
	device [24]byte
	vid    int32 // of a union of 24 bytes
	_      [20]byte
	qos    int16
	_      int16
}

// addVLAN makes an interface's VLAN, names it as eth0.100, and brings it up. One
// that is there is taken as it is.
func addVLAN(nic string, vid int) (string, error) {
	name := fmt.Sprintf("%s.%d", nic, vid)
	err := control(nic, func(fd int, _ *unix.Ifreq) error {
		a := vlanArgs{vid: int32(vid)} // command 0: add
		if copy(a.device[:len(a.device)-1], nic) < len(nic) {
			return unix.ENAMETOOLONG
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFVLAN, uintptr(unsafe.Pointer(&a))); errno != 0 && errno != unix.EEXIST {
			return errno
		}
		return nil
	})
	if err != nil {
		return name, fmt.Errorf("make VLAN %d of %s: %w; is the module 8021q in the ramdisk?", vid, nic, err)
	}
	if err := setUp(name); err != nil {
		return name, fmt.Errorf("bring up %s: %w", name, err)
	}
	return name, nil
}
