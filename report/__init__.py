"""What a study of guidance needs: values to sweep, sheets of pictures, records of runs and plots of them."""
