use super::*;

fn frame(first: u8, payload: usize, mask: bool) -> Vec<u8> {
    let bit = if mask { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload {
        0..126 => frame.push(bit | payload as u8),
        126..=0xffff => {
            frame.push(bit | 126);
            frame.extend((payload as u16).to_be_bytes());
        }
        _ => {
            frame.push(bit | 127);
            frame.extend((payload as u64).to_be_bytes());
        }
    }
    frame.extend(vec![0xff; payload + if mask { 4 } else { 0 }]);
    frame
}

#[test]
fn there_is_room_between_frames_and_nowhere_else_however_they_are_cut() {
    for payload in [0, 1, 125, 126, 127, 300, 0xffff, 0x1_0000] {
        for mask in [false, true] {
            let frame = frame(0x82, payload, mask);
            for step in [1, 3, frame.len()] {
                let mut frames = WebsocketFrames::default();
                assert!(frames.has_room());
                for _ in 0..2 {
                    for (index, chunk) in frame.chunks(step).enumerate() {
                        frames.follow(chunk);
                        let is_whole = (index + 1) * step >= frame.len();
                        assert_eq!(frames.has_room(), is_whole, "{payload} {mask} {step} {index}");
                    }
                }
            }
        }
    }
}

#[test]
fn after_a_close_frame_there_is_no_room() {
    let mut frames = WebsocketFrames::default();
    frames.follow(&frame(0x81, 5, false));
    frames.follow(GOING_AWAY);
    assert!(!frames.has_room());
}
