"""What people prefer, learned: reward, cost and attribute models behind one `Scorer`."""
